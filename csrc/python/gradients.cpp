// The gradients of a scan's weights, from what its backward left: for Python, on CPU tensors that
// rnnfast/backends/cpu.py has prepared.
#include "cpu/gradients.h"

#include <optional>
#include <string>
#include <vector>

#include "python/bind.h"
#include "python/module.h"
#include "python/scan.h"
#include "python/tensor.h"

namespace rnnfast::python {
namespace {

using Optional = std::optional<Tensor>;
using Names = std::vector<std::string>;

// As `checked`, where there may be nothing missing.
Tensor given(const char* name, const Optional& tensor, ScalarType dtype, const Sizes& shape) {
  check_value(tensor.has_value(), name, " must be given");
  return checked(name, *tensor, dtype, shape);
}

// Of what backward left, that of a weight.
Optional& gradient(cpu::Left<Tensor>& left, const std::string& weight) {
  if (weight == "w_ih") return left.dw_ih;
  if (weight == "w_hh") return left.dw_hh;
  if (weight == "w_hr") return left.dw_hr;
  if (weight == "b_ih") return left.db_ih;
  check_value(weight == "b_hh", "no weight is called ", weight);
  return left.db_hh;
}

Shape shape_of(const cpu::Left<Tensor>& left, const std::string& weight) {
  Shape shape{left.cell.gates * left.H};
  if (weight == "w_ih") shape.push_back(left.x->size(2));
  if (weight == "w_hh") shape.push_back(left.P);
  if (weight == "w_hr") shape = {left.P, left.H};
  if (left.groups > 0) shape.insert(shape.begin(), left.groups);
  return shape;
}

// Of any strides but the last.
Tensor input(const Optional& x, ScalarType dtype, int64_t T, int64_t B) {
  check_value(x && x->is_cpu() && x->dim() == 3, "w_ih needs x, 3-D and on the CPU");
  check_type(x->scalar_type() == dtype, "x must be ", dtype, ", got ", x->scalar_type());
  check_value(x->size(0) == T && x->size(1) == B,
              "x must have the steps and sequences of dgx, got ", x->sizes());
  const Tensor values = x->values();
  return values.stride(2) == 1 ? values : values.contiguous();
}

// Those of `names`, of w_ih (of which x [T, B, I] is needed), w_hh, b_ih, b_hh and w_hr, in their
// order. dgx [T, B, G·H], dgh_own and dh_total as backward left them. Where there are groups, of each
// of so many parts of the batch: [groups, …].
std::vector<Tensor> weight_gradients(const std::string& name, const Names& names, const Optional& x,
                                     const Tensor& y, const Optional& extra, const Tensor& h0,
                                     const Tensor& dgx, const Optional& dgh_own,
                                     const Optional& dh_total, const Optional& lengths,
                                     const Optional& resets, bool reverse, int64_t groups) {
  const CellInfo& cell = find_cell(name);
  const ScalarType dtype = y.scalar_type();
  check_type(is_number(dtype), "expected float32, float64, bfloat16 or float16, got ", dtype);
  const ScalarType stored = cpu::of_gates(dtype, wide(dtype));
  check_value(dgx.dim() == 3 && y.dim() == 3, "dgx and y must be 3-D");
  const int64_t T = dgx.size(0), B = dgx.size(1), H = dgx.size(2) / cell.gates, P = y.size(2);
  check_value(cell.projected() || P == H, "y must be as wide as a gate");
  check_value(groups >= 0 && (groups == 0 || B % groups == 0), "a batch of ", B,
              " has no groups of one size, ", groups);
  cpu::Left<Tensor> left{cell,
                         T,
                         B,
                         H,
                         P,
                         groups,
                         reverse,
                         given("dgx", dgx, stored, {T, B, cell.gates * H}),
                         given("y", y, dtype, {T, B, P}),
                         given("h0", h0, dtype, {B, P})};
  if (cell.own_gate >= 0) left.dgh_own = given("dgh_own", dgh_own, stored, {T, B, H});
  if (cell.projected()) left.dh_total = given("dh_total", dh_total, stored, {T, B, P});
  if (cell.has_extra()) left.extra = given("extra", extra, dtype, {T, B, H});
  if (lengths) left.lengths = checked("lengths", lengths, ScalarType::Long, {B});
  if (resets) left.resets = checked("resets", resets, ScalarType::Bool, {T, B});
  std::vector<Tensor> made;
  for (const std::string& weight : names) {
    if (weight == "w_ih") left.x = input(x, dtype, T, B);
    Optional& wanted = gradient(left, weight);
    check_value(!wanted, weight, " is named twice");
    check_value(weight != "w_hr" || cell.projected(), "w_hr is for projected cells");
    wanted = empty(shape_of(left, weight), dtype);
    made.push_back(*wanted);
  }
  const int threads = host_threads();
  cpu::with_gradients(dtype, [&](auto x, auto d) {
    const WithoutGil no_gil;
    cpu::weight_gradients<typename decltype(x)::Type, typename decltype(d)::Type>(left, threads);
  });
  return made;
}

}  // namespace

Tensor input_gradient(const Tensor& dgx, const Tensor& w_ih_) {
  const ScalarType dtype = w_ih_.scalar_type();
  check_type(is_number(dtype) && dgx.scalar_type() == cpu::of_gates(dtype, wide(dtype)),
             "gradients of gates in ", dgx.scalar_type(), " don't fit w_ih in ", dtype);
  check_value(w_ih_.dim() == 2, "w_ih must be 2-D");
  const Tensor w_ih = checked("w_ih", w_ih_, dtype, {dgx.size(2), w_ih_.size(1)});
  const Tensor dx = empty({dgx.size(0), dgx.size(1), w_ih.size(1)}, dtype);
  const int threads = host_threads();
  cpu::with_gradients(dtype, [&](auto x, auto d) {
    const WithoutGil no_gil;
    cpu::input_gradient<typename decltype(x)::Type, typename decltype(d)::Type>(dgx, w_ih, dx,
                                                                                threads);
  });
  return dx;
}

namespace {

// A sum of float32 as a gradient.
Tensor rounded(const Tensor& sum, ScalarType dtype) {
  if (sum.scalar_type() == dtype) return sum;
  const Tensor made = empty(sum.shape(), dtype);
  const int threads = host_threads();
  cpu::with_storage(dtype, [&](auto x) {
    using X = typename decltype(x)::Type;
    if constexpr (cpu::kNarrow<X>)
      cpu::round(cpu::data<X>(made), cpu::data<const float>(sum), sum.numel(), threads);
  });
  return made;
}

// What the scan needs to make dx, if it should.
std::optional<OfInput> of_scan(const std::string& name, const Tensor& w_ih_, const Tensor& w_hh,
                               const Tensor& gates, ScalarType dtype) {
  const CellInfo& cell = find_cell(name);
  check_value(w_ih_.dim() == 2 && w_hh.dim() == 2 && gates.dim() == 3,
              "w_ih and w_hh must be 2-D and gates 3-D");
  const int64_t T = gates.size(0), B = gates.size(1), columns = w_hh.size(0), I = w_ih_.size(1);
  if (B == 0 || !with_input(cell, B, columns / cell.gates, w_hh.size(1), I, dtype))
    return std::nullopt;
  return OfInput{checked("w_ih", w_ih_, dtype, {columns, I}), empty({T, B, I}, wide(dtype))};
}

using Gradients = std::tuple<Optional, Tensor, Optional, std::vector<Tensor>>;

// (dx if `of_input`, dh0, dc0, which have no meaning unless `of_states`, the gradients of the weights
// of these names), of a scan of x that keeps no trace of the other states.
Gradients gradients(const std::string& cell, const Names& names, bool of_input, bool of_states,
                    const Tensor& x, const Tensor& w_ih, const Tensor& gates, const Optional& extra,
                    const Tensor& y, const Optional& c, const Tensor& w_hh, const Optional& w_hr,
                    const Tensor& h0, const Optional& c0, const Optional& lengths,
                    const Optional& resets, bool reverse, const Optional& dy, const Optional& dc,
                    const Tensor& dh_last, const Optional& dc_last, double grad_clip_time,
                    int64_t groups) {
  const ScalarType dtype = h0.scalar_type();
  const std::optional<OfInput> here =
      of_input ? of_scan(cell, w_ih, w_hh, gates, dtype) : std::nullopt;
  const auto [dgx, dgh_own, dh_total, dh0, dc0] =
      backward(cell, gates, extra, y, c, w_hh, w_hr, h0, c0, lengths, resets, reverse, dy, dc,
               dh_last, dc_last, grad_clip_time, std::nullopt, of_states, here);
  std::vector<Tensor> made;
  if (!names.empty())
    made = weight_gradients(cell, names, x, y, extra, h0, dgx, dgh_own, dh_total, lengths, resets,
                            reverse, groups);
  Optional dx;
  if (of_input) dx = here ? rounded(here->dx, dtype) : input_gradient(dgx, w_ih);
  return {dx, rounded(dh0, dtype), dc0 ? Optional(rounded(*dc0, dtype)) : std::nullopt, made};
}

// Those of a layer of one direction, as `layer` of cpu.cpp made it; the states and the gradients of
// the last ones are [1, B, …], and what is not given of them is zero.
Gradients layer_gradients(const std::string& name, const Names& names, bool of_input,
                          bool of_states, const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                          const Optional& w_hr, const Optional& h0, const Optional& c0,
                          const Tensor& y, const Optional& c, const Optional& extra,
                          const Optional& gates, const Optional& dy, const Optional& dh,
                          const Optional& dc, bool reverse) {
  const ScalarType dtype = y.scalar_type();
  check_value(y.dim() == 3, "y must be 3-D");
  const int64_t B = y.size(1), P = y.size(2), H = w_hr ? w_hr->size(1) : P;
  const auto state = [&](const char* of, const Optional& given, int64_t width) {
    return first_state(of, given, dtype, B, width);
  };
  Optional c_first, dc_last;
  if (find_cell(name).states == 2) c_first = state("c0", c0, H), dc_last = state("dc", dc, H);
  return gradients(name, names, of_input, of_states, x, w_ih, gates ? *gates : y, extra, y, c, w_hh,
                   w_hr, state("h0", h0, P), c_first, std::nullopt, std::nullopt, reverse, dy,
                   std::nullopt, state("dh", dh, P), dc_last, 0, 0);
}

}  // namespace

void bind_gradients(std::vector<PyMethodDef>& functions) {
  bind<&weight_gradients>(functions, "cpu_weight_gradients",
                          "*, cell, names, x, y, extra, h0, dgx, dgh_own, dh_total, lengths, "
                          "resets, reverse, groups");
  bind<&gradients>(
      functions, "cpu_gradients",
      "*, cell, names, of_input, of_states, x, w_ih, gates, extra, y, c, w_hh, w_hr, h0, c0, "
      "lengths, resets, reverse, dy, dc, dh_last, dc_last, grad_clip_time, groups");
  bind<&layer_gradients>(
      functions, "cpu_layer_gradients",
      "cell, names, of_input, of_states, x, w_ih, w_hh, w_hr, h0, c0, y, c, extra, gates, "
      "dy, dh, dc, reverse");
}

}  // namespace rnnfast::python
