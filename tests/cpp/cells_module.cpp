// The cells and the reference scan for Python, on CPU tensors: what tests/test_cells_cpp.py holds
// against torch.nn; cells_module.py builds it.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "reference.h"

namespace rnnfast {
namespace {

namespace py = pybind11;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

const CellInfo& cell_of(const std::string& name) {
  try {
    return find_cell(name);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

// f(V(0)) with V the C++ type of `dtype`.
template <class F>
void with_float_type(at::ScalarType dtype, F&& f) {
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, "expected float32 or float64, got ",
                   dtype);
  if (dtype == at::kFloat) {
    f(0.0f);
  } else {
    f(0.0);
  }
}

// `tensor`, contiguous, if it is a dense CPU tensor of this dtype and shape.
Tensor checked(const char* name, const Tensor& tensor, at::ScalarType dtype,
               at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(tensor.defined(), name, " is missing");
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " must be on the CPU, got ", tensor.device());
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, name, " must be dense, got ", tensor.layout());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  return tensor.contiguous();
}

// data of an optional tensor, null without it.
template <class V>
const V* data(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<V>() : nullptr;
}

py::list cells() {
  static constexpr const char* kRanges[] = {"sigmoid", "tanh", "plain"};
  py::list all;
  for (const CellInfo& cell : kCells) {
    py::list products, saved;
    for (int p = 0; p < cell.phase_count; ++p) {
      const Phase& phase = cell.phases[p];
      py::list gates;
      for (int g = 0; g < phase.gates; ++g) gates.append(phase.first + g);
      products.append(py::make_tuple(phase.matrix == Matrix::kWhh ? "w_hh" : "w_hr", phase.operand,
                                     py::tuple(gates)));
    }
    for (int k = 0; k < cell.saved; ++k) saved.append(kRanges[static_cast<int>(cell.range[k])]);
    py::dict entry;
    entry["name"] = std::string(cell.name);
    entry["gates"] = cell.gates;
    entry["states"] = cell.states;
    entry["products"] = products;
    entry["saved"] = saved;
    entry["saves_output"] = cell.saves_output;
    entry["own_gate"] = cell.own_gate;
    entry["reads_h"] = cell.reads_h;
    all.append(entry);
  }
  return all;
}

// The pointwise part of one step, element by element; the last axis holds gates, states or saved
// values.

const CellInfo& one_phase_cell(const std::string& name) {
  const CellInfo& cell = cell_of(name);
  TORCH_CHECK_VALUE(
      cell.gate_phases() == 1, name,
      " has a product inside its step, so no pointwise part; use reference_scan_forward and "
      "reference_scan_backward");
  return cell;
}

std::vector<int64_t> with_last(const Tensor& like, int64_t last) {
  TORCH_CHECK_VALUE(like.dim() > 0, "expected at least one axis, got a scalar");
  std::vector<int64_t> shape = like.sizes().vec();
  shape.back() = last;
  return shape;
}

template <int N, class V>
void load(const V* from, int64_t i, V (&to)[N]) {
  for (int k = 0; k < N; ++k) to[k] = from[i * N + k];
}

template <int N, class V>
void store(const V (&from)[N], int64_t i, V* to) {
  for (int k = 0; k < N; ++k) to[i * N + k] = from[k];
}

template <class C, class V>
void forward_units(int64_t count, const V* gx, const V* gh, const V* s, V* s_new, V* saved) {
  for (int64_t i = 0; i < count; ++i) {
    V gx_i[C::kGates], gh_i[C::kGates], s_i[C::kStates], s_new_i[C::kStates], saved_i[C::kSaved];
    load(gx, i, gx_i);
    load(gh, i, gh_i);
    load(s, i, s_i);
    C::forward(At<0>{}, gx_i, gh_i, s_i, s_new_i, saved_i);
    store(s_new_i, i, s_new);
    store(saved_i, i, saved);
  }
}

template <class C, class V>
void backward_units(int64_t count, const V* ds_new, const V* saved, const V* s, V* dgx, V* dgh,
                    V* ds) {
  for (int64_t i = 0; i < count; ++i) {
    V ds_new_i[C::kStates], saved_i[C::kSaved], s_i[C::kStates], dgx_i[C::kGates], dgh_i[C::kGates],
        ds_i[C::kStates];
    load(ds_new, i, ds_new_i);
    load(saved, i, saved_i);
    load(s, i, s_i);
    C::backward(At<0>{}, ds_new_i, saved_i, s_i, dgx_i, dgh_i, ds_i);
    store(dgx_i, i, dgx);
    store(dgh_i, i, dgh);
    store(ds_i, i, ds);
  }
}

std::tuple<Tensor, Tensor> cell_forward(const std::string& name, Tensor gx, Tensor gh,
                                        Tensor states) {
  const CellInfo& cell = one_phase_cell(name);
  const at::ScalarType dtype = gx.scalar_type();
  gx = checked("gx", gx, dtype, with_last(gx, cell.gates));
  gh = checked("gh", gh, dtype, gx.sizes());
  states = checked("states", states, dtype, with_last(gx, cell.states));
  const Tensor new_states = at::empty_like(states),
               saved = at::empty(with_last(gx, cell.saved), gx.options());
  with_float_type(dtype, [&](auto zero) {
    using V = decltype(zero);
    dispatch(cell.id, [&](auto tag) {
      using C = typename decltype(tag)::template Cell<V>;
      if constexpr (kGatePhases<C> == 1) {
        forward_units<C>(gx.numel() / C::kGates, gx.const_data_ptr<V>(), gh.const_data_ptr<V>(),
                         states.const_data_ptr<V>(), new_states.mutable_data_ptr<V>(),
                         saved.mutable_data_ptr<V>());
      }
    });
  });
  return {new_states, saved};
}

std::tuple<Tensor, Tensor, Tensor> cell_backward(const std::string& name, Tensor dnew_states,
                                                 Tensor saved, Tensor states) {
  const CellInfo& cell = one_phase_cell(name);
  const at::ScalarType dtype = states.scalar_type();
  states = checked("states", states, dtype, with_last(states, cell.states));
  dnew_states = checked("dnew_states", dnew_states, dtype, states.sizes());
  saved = checked("saved", saved, dtype, with_last(states, cell.saved));
  const Tensor dgx = at::empty(with_last(states, cell.gates), states.options()),
               dgh = at::empty_like(dgx);
  const Tensor dstates = at::empty_like(states);
  with_float_type(dtype, [&](auto zero) {
    using V = decltype(zero);
    dispatch(cell.id, [&](auto tag) {
      using C = typename decltype(tag)::template Cell<V>;
      if constexpr (kGatePhases<C> == 1) {
        backward_units<C>(states.numel() / C::kStates, dnew_states.const_data_ptr<V>(),
                          saved.const_data_ptr<V>(), states.const_data_ptr<V>(),
                          dgx.mutable_data_ptr<V>(), dgh.mutable_data_ptr<V>(),
                          dstates.mutable_data_ptr<V>());
      }
    });
  });
  return {dgx, dgh, dstates};
}

// What both directions of the reference scan are given, checked and contiguous.
struct Scan {
  Problem p;
  at::ScalarType dtype;
  std::vector<Tensor> states;
  Tensor w_hh;
  OptionalTensor b_hh, w_hr, lengths, resets;

  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, w_hh.options()); }
  std::vector<int64_t> sequence(int64_t width) const { return {p.T, p.B, width}; }
  std::vector<int64_t> saved_shape() const { return {p.T, p.B, p.info().saved, p.H}; }

  // A list of one tensor a state: h [..., P] and, if the cell has one, c [..., H].
  std::vector<Tensor> checked_states(const char* name, const std::vector<Tensor>& tensors) const {
    TORCH_CHECK_VALUE(static_cast<int>(tensors.size()) == p.info().states, name, " must be ",
                      p.info().states, " tensors, got ", tensors.size());
    std::vector<Tensor> out;
    for (size_t k = 0; k < tensors.size(); ++k) {
      out.push_back(checked(name, tensors[k], dtype, {p.B, k == 0 ? p.P : p.H}));
    }
    return out;
  }

  // Every state but h at each step [T, B, H].
  std::vector<Tensor> checked_trace(const char* name, const std::vector<Tensor>& tensors) const {
    TORCH_CHECK_VALUE(static_cast<int>(tensors.size()) == p.info().states - 1, name, " must be ",
                      p.info().states - 1, " tensors, got ", tensors.size());
    std::vector<Tensor> out;
    for (const Tensor& tensor : tensors) out.push_back(checked(name, tensor, dtype, sequence(p.H)));
    return out;
  }

  std::vector<Tensor> empty_states() const {
    std::vector<Tensor> out;
    for (const Tensor& state : states) out.push_back(at::empty_like(state));
    return out;
  }

  template <class V>
  reference::Weights<V> weights() const {
    return {w_hh.const_data_ptr<V>(), data<V>(b_hh), data<V>(w_hr)};
  }

  reference::Masks masks() const { return {data<int64_t>(lengths), data<bool>(resets)}; }
};

// The problem of a scan over T steps of B sequences with this w_hh [G·H, P].
Problem problem_of(const CellInfo& cell, int64_t T, int64_t B, const Tensor& w_hh, bool reverse) {
  TORCH_CHECK_VALUE(w_hh.dim() == 2 && w_hh.size(0) % cell.gates == 0, "w_hh must have shape [",
                    cell.gates, "*H, P], got ", w_hh.sizes());
  Problem p;
  p.cell = cell.id;
  p.dtype = w_hh.scalar_type() == at::kDouble ? DType::kFloat64 : DType::kFloat32;
  p.T = T;
  p.B = B;
  p.H = w_hh.size(0) / cell.gates;
  p.P = w_hh.size(1);
  p.reverse = reverse;
  p.training = true;
  const std::string wrong = p.validate();
  TORCH_CHECK_VALUE(wrong.empty(), cell.name, ": ", wrong);
  return p;
}

Scan make_scan(const std::string& name, int64_t T, int64_t B, const std::vector<Tensor>& states,
               const Tensor& w_hh, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
               const OptionalTensor& lengths, const OptionalTensor& resets, bool reverse) {
  const CellInfo& cell = cell_of(name);
  Scan scan;
  scan.p = problem_of(cell, T, B, w_hh, reverse);
  scan.dtype = w_hh.scalar_type();
  scan.w_hh = checked("w_hh", w_hh, scan.dtype, w_hh.sizes());
  scan.states = scan.checked_states("states", states);
  if (b_hh) scan.b_hh = checked("b_hh", *b_hh, scan.dtype, {scan.p.gate_width()});
  TORCH_CHECK_VALUE(w_hr.has_value() == cell.projected(), name,
                    cell.projected() ? " needs w_hr" : " has no w_hr");
  if (w_hr) scan.w_hr = checked("w_hr", *w_hr, scan.dtype, {scan.p.P, scan.p.H});
  if (lengths) {
    scan.lengths = checked("lengths", *lengths, at::kLong, {B});
    const bool in_range = scan.lengths->ge(0).logical_and(scan.lengths->le(T)).all().item<bool>();
    TORCH_CHECK_VALUE(in_range, "lengths must be in 0 .. ", T, ", got ", *scan.lengths);
  }
  if (resets) scan.resets = checked("resets", *resets, at::kBool, {T, B});
  scan.p.has_lengths = lengths.has_value();
  scan.p.has_resets = resets.has_value();
  return scan;
}

using ForwardResult = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor>;

ForwardResult reference_scan_forward(const std::string& name, Tensor gx,
                                     const std::vector<Tensor>& states, const Tensor& w_hh,
                                     const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                                     const OptionalTensor& lengths, const OptionalTensor& resets,
                                     bool reverse) {
  TORCH_CHECK_VALUE(gx.dim() == 3, "gx must have shape [T, B, G*H], got ", gx.sizes());
  const Scan scan =
      make_scan(name, gx.size(0), gx.size(1), states, w_hh, b_hh, w_hr, lengths, resets, reverse);
  gx = checked("gx", gx, scan.dtype, scan.sequence(scan.p.gate_width()));
  const bool two = scan.p.has_cell_state();
  const Tensor y = scan.empty(scan.sequence(scan.p.P)), saved = scan.empty(scan.saved_shape());
  const std::vector<Tensor> final = scan.empty_states();
  std::vector<Tensor> trace;
  if (two) trace.push_back(scan.empty(scan.sequence(scan.p.H)));

  with_float_type(scan.dtype, [&](auto zero) {
    using V = decltype(zero);
    reference::Forward<V> io;
    io.gx = gx.const_data_ptr<V>();
    io.h0 = scan.states[0].const_data_ptr<V>();
    io.c0 = two ? scan.states[1].const_data_ptr<V>() : nullptr;
    io.y = y.mutable_data_ptr<V>();
    io.c = two ? trace[0].mutable_data_ptr<V>() : nullptr;
    io.h_last = final[0].mutable_data_ptr<V>();
    io.c_last = two ? final[1].mutable_data_ptr<V>() : nullptr;
    io.saved = saved.mutable_data_ptr<V>();
    dispatch(scan.p.cell, [&](auto tag) {
      reference::scan_forward<decltype(tag)::template Cell>(scan.p, scan.weights<V>(), scan.masks(),
                                                            io);
    });
  });
  return {y, final, trace, saved};
}

// (dgx, dstates, dw_hh, db_hh or None, dw_hr or None)
using BackwardResult =
    std::tuple<Tensor, std::vector<Tensor>, Tensor, OptionalTensor, OptionalTensor>;

BackwardResult reference_scan_backward(const std::string& name, Tensor dy,
                                       const std::vector<Tensor>& dfinal_given,
                                       const std::vector<Tensor>& dtrace_given, Tensor y,
                                       const std::vector<Tensor>& trace_given, Tensor saved,
                                       const std::vector<Tensor>& states, const Tensor& w_hh,
                                       const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                                       const OptionalTensor& lengths, const OptionalTensor& resets,
                                       bool reverse, double grad_clip_time) {
  TORCH_CHECK_VALUE(dy.dim() == 3, "dy must have shape [T, B, P], got ", dy.sizes());
  const Scan scan =
      make_scan(name, dy.size(0), dy.size(1), states, w_hh, b_hh, w_hr, lengths, resets, reverse);
  dy = checked("dy", dy, scan.dtype, scan.sequence(scan.p.P));
  y = checked("y", y, scan.dtype, scan.sequence(scan.p.P));
  saved = checked("saved", saved, scan.dtype, scan.saved_shape());
  const std::vector<Tensor> dfinal = scan.checked_states("dfinal", dfinal_given);
  const std::vector<Tensor> trace = scan.checked_trace("trace", trace_given);
  const std::vector<Tensor> dtrace = scan.checked_trace("dtrace", dtrace_given);
  const bool two = scan.p.has_cell_state();
  const Tensor dgx = scan.empty(scan.sequence(scan.p.gate_width())),
               dw_hh = at::empty_like(scan.w_hh);
  const std::vector<Tensor> dstates = scan.empty_states();
  OptionalTensor db_hh, dw_hr;
  if (scan.b_hh) db_hh = at::empty_like(*scan.b_hh);
  if (scan.w_hr) dw_hr = at::empty_like(*scan.w_hr);

  with_float_type(scan.dtype, [&](auto zero) {
    using V = decltype(zero);
    reference::Backward<V> io;
    io.clip = TimeClip<V>::of(grad_clip_time);
    io.h0 = scan.states[0].const_data_ptr<V>();
    io.c0 = two ? scan.states[1].const_data_ptr<V>() : nullptr;
    io.y = y.const_data_ptr<V>();
    io.c = two ? trace[0].const_data_ptr<V>() : nullptr;
    io.saved = saved.const_data_ptr<V>();
    io.dy = dy.const_data_ptr<V>();
    io.dc = two ? dtrace[0].const_data_ptr<V>() : nullptr;
    io.dh_last = dfinal[0].const_data_ptr<V>();
    io.dc_last = two ? dfinal[1].const_data_ptr<V>() : nullptr;
    io.dgx = dgx.mutable_data_ptr<V>();
    io.dh0 = dstates[0].mutable_data_ptr<V>();
    io.dc0 = two ? dstates[1].mutable_data_ptr<V>() : nullptr;
    io.dw_hh = dw_hh.mutable_data_ptr<V>();
    io.db_hh = db_hh ? db_hh->mutable_data_ptr<V>() : nullptr;
    io.dw_hr = dw_hr ? dw_hr->mutable_data_ptr<V>() : nullptr;
    dispatch(scan.p.cell, [&](auto tag) {
      reference::scan_backward<decltype(tag)::template Cell>(scan.p, scan.weights<V>(),
                                                             scan.masks(), io);
    });
  });
  return {dgx, dstates, dw_hh, db_hh, dw_hr};
}

}  // namespace
}  // namespace rnnfast

// Every function raises ValueError or TypeError for arguments of a wrong shape, device, layout or
// dtype.
PYBIND11_MODULE(cells_module, m) {
  namespace py = pybind11;
  using namespace rnnfast;
  using torch::wrap_pybind_function_no_gil;
  m.def("cells", &cells,
        "The facts of csrc/cells: name, gates, states; products, each (matrix, the index of the "
        "saved value that it multiplies or -1 for h, gates); saved, the range of each value; "
        "saves_output, own_gate (-1: none), reads_h.");
  m.def("cell_forward", wrap_pybind_function_no_gil(cell_forward), py::arg("name"), py::arg("gx"),
        py::arg("gh"), py::arg("states"),
        "gx, gh [..., G], states [..., S] -> (new states [..., S], saved [..., K]); float32 or "
        "float64, CPU.");
  m.def("cell_backward", wrap_pybind_function_no_gil(cell_backward), py::arg("name"),
        py::arg("dnew_states"), py::arg("saved"), py::arg("states"),
        "-> (dgx [..., G], dgh [..., G], the direct part of dstates [..., S]); float32 or float64, "
        "CPU.");
  m.def("reference_scan_forward", wrap_pybind_function_no_gil(reference_scan_forward),
        py::arg("name"), py::arg("gx"), py::arg("states"), py::arg("w_hh"),
        py::arg("b_hh") = py::none(), py::arg("w_hr") = py::none(), py::arg("lengths") = py::none(),
        py::arg("resets") = py::none(), py::arg("reverse") = false,
        "gx [T, B, G*H], states [h [B, P], c [B, H]] -> (y [T, B, P], final states, [c [T, B, H]], "
        "saved).");
  m.def("reference_scan_backward", wrap_pybind_function_no_gil(reference_scan_backward),
        py::arg("name"), py::arg("dy"), py::arg("dfinal"), py::arg("dtrace"), py::arg("y"),
        py::arg("trace"), py::arg("saved"), py::arg("states"), py::arg("w_hh"),
        py::arg("b_hh") = py::none(), py::arg("w_hr") = py::none(), py::arg("lengths") = py::none(),
        py::arg("resets") = py::none(), py::arg("reverse") = false, py::arg("grad_clip_time") = 0.0,
        "-> (dgx [T, B, G*H], dstates, dw_hh, db_hh or None, dw_hr or None).");
}
