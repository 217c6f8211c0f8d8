// The gradients of a scan by the host kernels: what rnnfast/backends/cpu.py does in Python.
#include "cpu/call.h"
#include "cpu/weight_sums.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

using cpu::data;

int threads() { return cpu::threads_of(int(torch::stable::get_num_threads())); }

Tensor given(const Scan& scan, const char* name, const Tensor& tensor, ScalarType dtype,
             const Shape& shape) {
  check_given(scan, name, tensor, dtype, shape);
  return plain(tensor, dtype == ScalarType::Short ? dtype : scan.wide());
}

// In the order in which forward has saved them; of a program whose backend saves nothing forward
// runs once more.
void read_saved(const Scan& scan, const Cotangents& of, cpu::Back<Tensor>& back) {
  const CellInfo& cell = scan.cell;
  const int64_t T = scan.T, B = scan.B, H = scan.H;
  Scan again = scan;
  again.saves = true;
  const std::vector<Tensor> saved = scan.saves ? of.saved : std::get<3>(forward(again));
  const bool has_c = cell.states == 2;
  require(of.trace.size() == size_t(has_c && scan.all_states), "trace does not fit the cell");
  const size_t expected = !cell.saves_output + cell.has_extra() + (has_c && !scan.all_states);
  require(saved.size() == expected, "expected ", expected, " saved tensors, got ", saved.size());
  auto next = saved.begin();
  if (cell.saves_output) {
    back.gates = back.y;
  } else {
    const bool fixed = scan.storage != scan.wide();
    const ScalarType dtype = fixed ? ScalarType::Short : scan.storage;
    (fixed ? back.fixed : back.gates) =
        given(scan, "saved gates", *next++, dtype, {T, B, scan.gate_width()});
  }
  if (cell.has_extra()) back.extra = given(scan, "saved", *next++, scan.storage, {T, B, H});
  if (has_c)
    back.c = given(scan, "every c", scan.all_states ? of.trace[0] : *next, scan.storage, {T, B, H});
}

// What the loop backward reads and writes.
cpu::Back<Tensor> room_for(const Scan& scan, const Cotangents& of) {
  const int64_t T = scan.T, B = scan.B, H = scan.H, P = scan.P;
  const CellInfo& cell = scan.cell;
  const ScalarType dtype = scan.wide(), storage = scan.storage;
  const size_t states = size_t(cell.states);
  require(of.dfinal.size() == states, "expected ", states, " dfinal, got ", of.dfinal.size());
  require(of.dtrace.size() == of.trace.size(), "dtrace does not fit trace");
  cpu::Back<Tensor> back{};
  back.y = given(scan, "y", of.y, storage, {T, B, P});
  read_saved(scan, of, back);
  if (of.dy) back.dy = given(scan, "dy", *of.dy, storage, {T, B, P});
  if (!of.dtrace.empty()) back.dc = given(scan, "dtrace", of.dtrace[0], storage, {T, B, H});
  check_given(scan, "dfinal h", of.dfinal[0], storage, {B, P});
  back.dh_last = plain(of.dfinal[0], dtype), back.dh0 = empty({B, P}, dtype);
  if (states == 2) {
    check_given(scan, "dfinal c", of.dfinal[1], storage, {B, H});
    back.dc_last = plain(of.dfinal[1], dtype), back.dc0 = empty({B, H}, dtype);
  }
  back.dgx = empty({T, B, scan.gate_width()}, dtype);
  if (cell.own_gate >= 0) back.dgh_own = empty({T, B, H}, dtype);
  if (cell.projected()) back.dh_total = empty({T, B, P}, dtype);
  back.grad_clip_time = of.grad_clip_time;
  return back;
}

// dgx·W_ih [T, B, I].
template <class S>
void of_input(const Scan& scan, const Tensor& dgx, const Tensor& w_ih, const Tensor& dx) {
  cpu::Gemm<S> g;
  g.M = scan.T * scan.B, g.N = scan.I, g.K = scan.gate_width();
  g.a = data<const S>(dgx), g.a_row = g.K, g.a_column = 1;
  g.b = data<const S>(w_ih), g.b_row = g.N, g.b_column = 1;
  g.c = data<S>(dx), g.c_row = g.N;
  cpu::multiply(g, threads(), cpu::scratch);
}

// A token's column of dW_ih is the sum of its gates' gradients.
template <class S>
void of_tokens(const Scan& scan, const Tensor& dgx, const Tensor& dw_ih) {
  const int64_t *tokens = data<const int64_t>(scan.input),
                *lengths = data<const int64_t>(scan.lengths);
  const int64_t I = scan.I, B = scan.B, GH = scan.gate_width();
  const S* rows = data<const S>(dgx);
  S* sums = data<S>(dw_ih);
  for (int64_t n = 0; n < scan.T * B; ++n) {
    if (lengths && n / B >= lengths[n % B]) continue;
    for (int64_t j = 0; j < GH; ++j) sums[j * I + tokens[n]] += rows[n * GH + j];
  }
}

template <class S>
void of_weights(const Scan& scan, const cpu::Back<Tensor>& back, const Weights& made) {
  const bool dense = scan.kind == "dense";
  const Tensor h0 = plain(scan.h0, scan.wide());
  cpu::WeightGradients<S> w;
  Optional x;
  if (dense) {
    x = plain(scan.input, scan.wide());
    w.I = scan.I, w.x_step = scan.B * scan.I, w.x_row = scan.I;
    w.dw_ih = data<S>(made.w_ih);
  }
  w.x = data<const S>(x), w.y = data<const S>(back.y), w.h0 = data<const S>(h0);
  w.extra = data<const S>(back.extra), w.dgx = data<const S>(back.dgx);
  w.dgh_own = data<const S>(back.dgh_own), w.dh_total = data<const S>(back.dh_total);
  w.dw_hh = data<S>(made.w_hh), w.dw_hr = data<S>(made.w_hr);
  w.db_ih = data<S>(made.b_ih), w.db_hh = data<S>(made.b_hh);
  cpu::Sums<S> sums;
  sums.T = scan.T, sums.B = scan.B, sums.reverse = scan.reverse;
  sums.lengths = data<const int64_t>(scan.lengths), sums.resets = data<const bool>(scan.resets);
  cpu::WeightSums<S>(scan.cell, scan.H, scan.P, w, sums);
  cpu::add_up(sums, threads(), cpu::scratch);
  if (scan.kind == "tokens") of_tokens<S>(scan, back.dgx, *made.w_ih);
}

// Zeros like each weight, in the wide dtype.
Weights like_weights(const Scan& scan) {
  const auto zeros = [&](const Optional& weight) -> Optional {
    if (!weight) return std::nullopt;
    Tensor made = empty(shape_of(*weight), scan.wide());
    return torch::stable::zero_(made);
  };
  const Weights& w = scan.weights;
  return {zeros(w.w_ih), zeros(w.w_hh), zeros(w.b_ih), zeros(w.b_hh), zeros(w.w_hr)};
}

template <class S>
void run(const Scan& scan, const cpu::Back<Tensor>& back) {
  const ScalarType dtype = scan.wide();
  const Weights& w = scan.weights;
  const auto optional = [&](const Optional& tensor) -> Optional {
    return tensor ? Optional(plain(*tensor, dtype)) : std::nullopt;
  };
  const cpu::Given<Tensor> in{scan.cell,
                              scan.T,
                              scan.B,
                              scan.H,
                              scan.P,
                              scan.reverse,
                              true,
                              plain(*w.w_hh, dtype),
                              plain(scan.h0, dtype),
                              std::nullopt,
                              optional(w.w_hr),
                              optional(scan.c0),
                              scan.lengths,
                              scan.resets};
  cpu::backward<S, S>(in, back, threads());
}

Tensor input_gradient(const Scan& scan, const Tensor& dgx) {
  if (scan.kind == "gates") return cast(dgx, scan.storage);
  const Tensor w_ih = plain(*scan.weights.w_ih, scan.wide());
  const Tensor dx = empty({scan.T, scan.B, scan.I}, scan.wide());
  if (dx.numel() > 0)
    scan.wide() == ScalarType::Float ? of_input<float>(scan, dgx, w_ih, dx)
                                     : of_input<double>(scan, dgx, w_ih, dx);
  return cast(dx, scan.storage);
}

}  // namespace

Gradients backward(const Scan& scan, const Cotangents& of, const Needs& needs) {
  const cpu::Back<Tensor> back = room_for(scan, of);
  const bool is_float = scan.wide() == ScalarType::Float;
  if (scan.B > 0) is_float ? run<float>(scan, back) : run<double>(scan, back);
  Gradients made{empty({0}, scan.storage), {}, {}};
  auto& [dinput, dstates, dweights] = made;
  if (needs.input && scan.kind != "tokens") dinput = input_gradient(scan, back.dgx);
  if (needs.states) {
    dstates.push_back(cast(back.dh0, scan.storage));
    if (back.dc0) dstates.push_back(cast(*back.dc0, scan.storage));
  }
  if (needs.weights) {
    const Weights w = like_weights(scan);
    if (scan.B > 0) is_float ? of_weights<float>(scan, back, w) : of_weights<double>(scan, back, w);
    for (const Optional& one : {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr})  // as the schema has them
      if (one) dweights.push_back(cast(*one, scan.storage));
  }
  return made;
}

}  // namespace rnnfast::ops
