// The ops of a part of a scan's steps, for rnnfast/backends/cuda/pipeline.py: one direction, into
// memory that is there, the state handed from part to part in fp32.
#include <torch/library.h>

#include <optional>
#include <string>

#include "cuda/device/layout.h"
#include "cuda_device.h"
#include "cuda_scan.h"

namespace rnnfast {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// [h, c] of a cell with both, [h], or nothing.
CarriedTensors carried(const char* name, at::TensorList list, const Sizes& sizes) {
  const size_t states = static_cast<size_t>(sizes.cell->states);
  TORCH_CHECK_VALUE(list.empty() || list.size() == states, name, " must have ", states,
                    " tensors, or none, got ", list.size());
  CarriedTensors made;
  if (!list.empty()) made.h = checked_out(name, list[0], at::kFloat, {sizes.B, sizes.H});
  if (list.size() == 2) made.c = checked_out(name, list[1], at::kFloat, {sizes.B, sizes.H});
  return made;
}

// One that this cell has, or has not.
Tensor of_cell(const char* name, const Optional& tensor, bool wanted, at::ScalarType dtype,
               at::IntArrayRef shape, bool written = false) {
  TORCH_CHECK_VALUE(tensor.has_value() == wanted, name,
                    wanted ? " is missing" : " is not this cell's");
  if (!wanted) return Tensor();
  return written ? checked_out(name, *tensor, dtype, shape) : checked(name, *tensor, dtype, shape);
}

constexpr bool kWritten = true;

Sizes sizes_of_part(const std::string& name, const std::string& strategy, const Tensor& y,
                    const Tensor& w_hh) {
  TORCH_CHECK_VALUE(y.dim() == 3, "y must have 3 dimensions");
  const Sizes sizes = sizes_of(name, y.size(0), y.size(1), w_hh);
  TORCH_CHECK_VALUE(strategy == "resident" || strategy == "cluster",
                    "parts of a scan can't be computed by the strategy '", strategy, "'");
  return sizes;
}

void forward_part(const std::string& name, const std::string& strategy, const std::string& math,
                  at::IntArrayRef choice, const Tensor& gates, const Tensor& w_hh, const Tensor& h0,
                  const Optional& c0, const Optional& lengths, const Optional& resets,
                  bool training, at::TensorList before, const Tensor& y, const Tensor& h_last,
                  const Optional& c_last, const Optional& c, at::TensorList after) {
  const OnDevice guard(device_of("y", y));
  ForwardScan scan{sizes_of_part(name, strategy, y, w_hh), training, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  scan.lengths = checked("lengths", lengths, at::kLong, {B});
  scan.resets = checked("resets", resets, at::kBool, {T, B});
  ForwardTensors d;
  d.gates = checked_out("gates", gates, dtype, {T, B, H, cuda::slots_of(cell->id)});
  d.w_hh = checked("w_hh", w_hh, dtype, {cell->gates * H, P});
  d.h0 = checked("h0", h0, dtype, {B, P});
  d.c0 = of_cell("c0", c0, has_c, dtype, {B, H});
  d.before = carried("before", before, scan.sizes);
  d.y = checked_out("y", y, dtype, {T, B, P});
  d.h_last = checked_out("h_last", h_last, dtype, {B, P});
  d.c_last = of_cell("c_last", c_last, has_c, dtype, {B, H}, kWritten);
  if (c) d.c = of_cell("c", c, has_c, wide(dtype), {T, B, H}, kWritten);
  d.after = carried("after", after, scan.sizes);
  scan.directions.push_back(std::move(d));
  if (B > 0) run(scan, {strategy, math, choice.vec()});
}

void backward_part(const std::string& name, const std::string& strategy, const std::string& math,
                   at::IntArrayRef choice, const Optional& saved, const Tensor& y,
                   const Optional& c, const Tensor& w_hh, const Tensor& h0, const Optional& c0,
                   const Optional& lengths, const Optional& resets, const Optional& dy,
                   const Tensor& dh_last, const Optional& dc_last, double clip,
                   const Optional& c_before, at::TensorList after, const Tensor& dgates,
                   const Tensor& dh0, const Optional& dc0, at::TensorList before) {
  const OnDevice guard(device_of("y", y));
  BackwardScan scan{sizes_of_part(name, strategy, y, w_hh), clip, {}, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  const int64_t S = cuda::slots_of(cell->id);
  scan.lengths = checked("lengths", lengths, at::kLong, {B});
  scan.resets = checked("resets", resets, at::kBool, {T, B});
  BackwardTensors d;
  d.saved = of_cell("saved", saved, !cell->saves_output, dtype, {T, B, H, S});
  d.y = checked("y", y, dtype, {T, B, P});
  d.c = of_cell("c", c, has_c, wide(dtype), {T, B, H});
  d.w_hh = checked("w_hh", w_hh, dtype, {cell->gates * H, P});
  d.h0 = checked("h0", h0, dtype, {B, P});
  d.c0 = of_cell("c0", c0, has_c, dtype, {B, H});
  d.dy = checked("dy", dy, dtype, {T, B, P});
  d.dh_last = checked("dh_last", dh_last, dtype, {B, P});
  d.dc_last = of_cell("dc_last", dc_last, has_c, dtype, {B, H});
  d.c_before = checked("c_before", c_before, wide(dtype), {B, H});
  d.after = carried("after", after, scan.sizes);
  d.dgates = checked_out("dgates", dgates, dtype, {T, B, H, S});
  d.dh0 = checked_out("dh0", dh0, dtype, {B, P});
  d.dc0 = of_cell("dc0", dc0, has_c, dtype, {B, H}, kWritten);
  d.before = carried("before", before, scan.sizes);
  scan.directions.push_back(std::move(d));
  if (B > 0) run(scan, {strategy, math, choice.vec()});
}

}  // namespace
}  // namespace rnnfast

TORCH_LIBRARY_FRAGMENT(RNNFAST_LIBRARY, m) {
  m.def(
      "cuda_forward_part(str cell, str strategy, str math, int[] choice, Tensor(a!) gates, Tensor "
      "w_hh, Tensor h0, Tensor? c0, Tensor? lengths, Tensor? resets, bool training, Tensor[] "
      "before, Tensor(b!) y, Tensor(c!) h_last, Tensor(d!)? c_last, Tensor(e!)? c, Tensor(f!)[] "
      "after) -> ()");
  m.def(
      "cuda_backward_part(str cell, str strategy, str math, int[] choice, Tensor? saved, Tensor y, "
      "Tensor? c, Tensor w_hh, Tensor h0, Tensor? c0, Tensor? lengths, Tensor? resets, Tensor? dy, "
      "Tensor dh_last, Tensor? dc_last, float clip, Tensor? c_before, Tensor[] after, Tensor(a!) "
      "dgates, Tensor(b!) dh0, Tensor(c!)? dc0, Tensor(d!)[] before) -> ()");
}

TORCH_LIBRARY_IMPL(RNNFAST_LIBRARY, RNNFAST_DISPATCH_KEY, m) {
  m.impl("cuda_forward_part", &rnnfast::forward_part);
  m.impl("cuda_backward_part", &rnnfast::backward_part);
}

#if !defined(RNNFAST_SIMT)
// On CPU tensors the same functions refuse, naming the tensor and why.
TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  m.impl("cuda_forward_part", &rnnfast::forward_part);
  m.impl("cuda_backward_part", &rnnfast::backward_part);
}
#endif
