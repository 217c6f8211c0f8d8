// What the parts of a scan's call share.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "python/tensor.h"

namespace rnnfast::python {

// (dgx, the part of dgh that is another than dgx's, gradient of each h' of projected cells,
// dh0, dc0)
using BackwardResult =
    std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>, Tensor, std::optional<Tensor>>;

// The gradient of x, to be made by the scan: dx [T, B, I] in what numbers are computed in.
struct OfInput {
  Tensor w_ih, dx;
};

// `gates` as forward left them, or what it put into `fixed`. dh0 and dc0 are wide, and have no meaning
// unless `of_states`. With `jobs` the results are only written when those run. In cpu.cpp.
BackwardResult backward(const std::string& cell, const Tensor& gates,
                        const std::optional<Tensor>& extra, const Tensor& y,
                        const std::optional<Tensor>& c, const Tensor& w_hh,
                        const std::optional<Tensor>& w_hr, const Tensor& h0,
                        const std::optional<Tensor>& c0, const std::optional<Tensor>& lengths,
                        const std::optional<Tensor>& resets, bool reverse,
                        const std::optional<Tensor>& dy, const std::optional<Tensor>& dc,
                        const Tensor& dh_last, const std::optional<Tensor>& dc_last,
                        double grad_clip_time, const std::optional<Ref>& jobs, bool of_states,
                        const std::optional<OfInput>& of_input);

// Whether a scan should make the input's part of the gates, of I columns of x, or the gradient of x,
// itself. In cpu.cpp.
bool with_input(const CellInfo& cell, int64_t B, int64_t H, int64_t P, int64_t I, ScalarType dtype);

// A state [1, B, width] of a layer as the scan has it, zeros if not given. In cpu.cpp.
Tensor first_state(const char* name, const std::optional<Tensor>& given, ScalarType dtype,
                   int64_t B, int64_t width);

// dgx·W_ih: the gradient of x, in float32 or float64. In gradients.cpp.
Tensor input_gradient(const Tensor& dgx, const Tensor& w_ih);

// What rnnfast._cpu's SumPlan makes of tensors, results like `weights`. In sums.cpp.
std::vector<Tensor> added_up(const Ref& plan, const std::vector<Tensor>& tensors,
                             const std::vector<Tensor>& weights,
                             const std::optional<Tensor>& lengths,
                             const std::optional<Tensor>& resets, bool reverse);

}  // namespace rnnfast::python
