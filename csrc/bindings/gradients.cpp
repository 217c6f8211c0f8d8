// The gradients of a scan's input and weights, from what its backward left: for Python, on CPU
// tensors that rnnfast/backends/cpu.py has prepared.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bindings/scratch.h"
#include "bindings/threads.h"
#include "cpu/weight_sums.h"

namespace rnnfast {
namespace {

namespace py = pybind11;
using at::Tensor;
using Optional = std::optional<Tensor>;

Tensor checked(const char* name, const Optional& tensor, at::ScalarType dtype,
               at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor && tensor->device().is_cpu(), name, " must be given, on the CPU");
  TORCH_CHECK_TYPE(tensor->scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   tensor->scalar_type());
  TORCH_CHECK_VALUE(tensor->sizes() == shape, name, " must have shape ", shape, ", got ",
                    tensor->sizes());
  return tensor->resolve_neg().contiguous();
}

// What backward left, and what it is multiplied with.
struct Left {
  const CellInfo& cell;
  at::ScalarType dtype;
  int64_t T, B, H, P;
  Tensor dgx, dgh_own, dh_total, y, extra, h0, lengths, resets;
  bool reverse;
};

using Names = std::vector<std::string>;
using Gradients = std::map<std::string, Tensor>;

template <class S>
S* where(const Gradients& found, const char* name) {
  const auto at = found.find(name);
  return at == found.end() ? nullptr : at->second.mutable_data_ptr<S>();
}

template <class S>
const S* read(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<S>() : nullptr;
}

template <class S>
void add_up(const Left& left, const Optional& x, const Gradients& found) {
  cpu::WeightGradients<S> w;
  if (x) {
    w.I = x->size(2), w.x_step = x->stride(0), w.x_row = x->stride(1);
    w.x = x->const_data_ptr<S>();
  }
  w.y = read<S>(left.y), w.extra = read<S>(left.extra), w.h0 = read<S>(left.h0);
  w.dgx = read<S>(left.dgx), w.dgh_own = read<S>(left.dgh_own);
  w.dh_total = read<S>(left.dh_total);
  w.dw_ih = where<S>(found, "w_ih"), w.db_ih = where<S>(found, "b_ih");
  w.dw_hh = where<S>(found, "w_hh"), w.db_hh = where<S>(found, "b_hh");
  w.dw_hr = where<S>(found, "w_hr");
  cpu::Sums<S> sums;
  sums.T = left.T, sums.B = left.B, sums.reverse = left.reverse;
  sums.lengths = read<int64_t>(left.lengths), sums.resets = read<bool>(left.resets);
  cpu::WeightSums<S>(left.cell, left.H, left.P, w, sums);
  Tensor workspace;
  cpu::add_up(sums, host_threads(), [&](int64_t bytes) {
    workspace = scratch(bytes);
    return workspace.mutable_data_ptr();
  });
}

// Those of `names`, of w_ih (of which x [T, B, I] is needed), w_hh, b_ih, b_hh and w_hr, in their
// order. As backward left dgx [T, B, G·H], dgh_own and dh_total.
std::vector<Tensor> weight_gradients(const std::string& name, const Names& names, const Optional& x,
                                     const Tensor& y, const Optional& extra, const Tensor& h0,
                                     const Tensor& dgx, const Optional& dgh_own,
                                     const Optional& dh_total, const Optional& lengths,
                                     const Optional& resets, bool reverse) {
  const CellInfo& cell = find_cell(name);
  const at::ScalarType dtype = dgx.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, "expected float32 or float64, got ",
                   dtype);
  TORCH_CHECK_VALUE(dgx.dim() == 3 && y.dim() == 3, "dgx and y must be 3-D");
  const int64_t T = dgx.size(0), B = dgx.size(1), H = dgx.size(2) / cell.gates, P = y.size(2);
  const int64_t GH = cell.gates * H;
  Left left{cell, dtype, T, B, H, P, {}, {}, {}, {}, {}, {}, {}, {}, reverse};
  left.dgx = checked("dgx", dgx, dtype, {T, B, GH});
  left.y = checked("y", y, dtype, {T, B, P}), left.h0 = checked("h0", h0, dtype, {B, P});
  if (cell.own_gate >= 0) left.dgh_own = checked("dgh_own", dgh_own, dtype, {T, B, H});
  if (cell.projected()) left.dh_total = checked("dh_total", dh_total, dtype, {T, B, P});
  if (cell.has_extra()) left.extra = checked("extra", extra, dtype, {T, B, H});
  if (lengths) left.lengths = checked("lengths", lengths, at::kLong, {B});
  if (resets) left.resets = checked("resets", resets, at::kBool, {T, B});
  Optional input;
  Gradients found;
  std::vector<Tensor> in_order;
  for (const std::string& weight : names) {
    std::vector<int64_t> shape{GH};
    if (weight == "w_ih") {
      TORCH_CHECK_VALUE(x && x->dim() == 3, "w_ih needs x");
      TORCH_CHECK_TYPE(x->scalar_type() == dtype, "x must be ", dtype);
      TORCH_CHECK_VALUE(x->device().is_cpu() && x->size(0) == T && x->size(1) == B,
                        "x must have the steps and sequences of dgx");
      input = x->resolve_neg();
      if (input->stride(2) != 1) input = input->contiguous();
      shape.push_back(x->size(2));
    } else if (weight == "w_hh") {
      shape.push_back(P);
    } else if (weight == "w_hr") {
      shape = {P, H};
    } else {
      TORCH_CHECK_VALUE(weight == "b_ih" || weight == "b_hh", "no weight is called ", weight);
    }
    in_order.push_back(at::empty(shape, dgx.options()));
    found[weight] = in_order.back();
  }
  dtype == at::kFloat ? add_up<float>(left, input, found) : add_up<double>(left, input, found);
  return in_order;
}

}  // namespace
}  // namespace rnnfast

void bind_gradients(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("cpu_weight_gradients", &rnnfast::weight_gradients, py::kw_only(), py::arg("cell"),
        py::arg("names"), py::arg("x"), py::arg("y"), py::arg("extra"), py::arg("h0"),
        py::arg("dgx"), py::arg("dgh_own"), py::arg("dh_total"), py::arg("lengths"),
        py::arg("resets"), py::arg("reverse"), py::call_guard<py::gil_scoped_release>());
}
