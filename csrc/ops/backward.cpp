// The gradients of a scan by the host kernels: what rnnfast/backends/cpu.py does in Python.
#include "cpu/gradients.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

using cpu::data;

int threads() { return cpu::threads_of(int(torch::stable::get_num_threads())); }

Tensor given(const Scan& scan, const char* name, const Tensor& tensor, ScalarType dtype,
             const Shape& shape) {
  check_given(scan, name, tensor, dtype, shape);
  return plain(tensor, dtype);
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
  const ScalarType storage = scan.storage, wide = scan.wide();
  const ScalarType of_gates = cpu::of_gates(storage, wide);
  const size_t states = size_t(cell.states);
  require(of.dfinal.size() == states, "expected ", states, " dfinal, got ", of.dfinal.size());
  require(of.dtrace.size() == of.trace.size(), "dtrace does not fit trace");
  cpu::Back<Tensor> back{};
  back.y = given(scan, "y", of.y, storage, {T, B, P});
  read_saved(scan, of, back);
  if (of.dy) back.dy = given(scan, "dy", *of.dy, storage, {T, B, P});
  if (!of.dtrace.empty()) back.dc = given(scan, "dtrace", of.dtrace[0], storage, {T, B, H});
  back.dh_last = given(scan, "dfinal h", of.dfinal[0], storage, {B, P});
  back.dh0 = empty({B, P}, wide);
  if (states == 2) {
    back.dc_last = given(scan, "dfinal c", of.dfinal[1], storage, {B, H});
    back.dc0 = empty({B, H}, wide);
  }
  back.dgx = empty({T, B, scan.gate_width()}, of_gates);
  if (cell.own_gate >= 0) back.dgh_own = empty({T, B, H}, of_gates);
  if (cell.projected()) back.dh_total = empty({T, B, P}, of_gates);
  back.grad_clip_time = of.grad_clip_time;
  return back;
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

Tensor of_tokens(const Scan& scan, const Tensor& dgx) {
  const ScalarType dtype = scan.wide();
  Tensor sums = empty({scan.gate_width(), scan.I}, dtype);
  torch::stable::zero_(sums);
  const Tensor rows = cast(dgx, dtype);
  dtype == ScalarType::Float ? of_tokens<float>(scan, rows, sums)
                             : of_tokens<double>(scan, rows, sums);
  return cast(sums, scan.storage);
}

Weights of_weights(const Scan& scan, const cpu::Back<Tensor>& back) {
  cpu::Left<Tensor> left{scan.cell, scan.T,       scan.B,   scan.H, scan.P,
                         0,         scan.reverse, back.dgx, back.y, plain(scan.h0, scan.storage)};
  left.extra = back.extra, left.dgh_own = back.dgh_own, left.dh_total = back.dh_total;
  left.lengths = scan.lengths, left.resets = scan.resets;
  const auto like = [&](const Optional& weight) -> Optional {
    return weight ? Optional(empty(shape_of(*weight), scan.storage)) : std::nullopt;
  };
  const Weights& w = scan.weights;
  left.dw_hh = like(w.w_hh), left.dw_hr = like(w.w_hr);
  left.db_ih = like(w.b_ih), left.db_hh = like(w.b_hh);
  if (scan.kind == "dense") left.x = plain(scan.input, scan.storage), left.dw_ih = like(w.w_ih);
  cpu::with_gradients(scan.storage, [&](auto x, auto d) {
    cpu::weight_gradients<typename decltype(x)::Type, typename decltype(d)::Type>(left, threads());
  });
  if (scan.kind == "tokens") left.dw_ih = of_tokens(scan, back.dgx);
  return {left.dw_ih, left.dw_hh, left.db_ih, left.db_hh, left.dw_hr};
}

// The loop backward.
template <class X, class D>
void run(const Scan& scan, const cpu::Back<Tensor>& back) {
  const ScalarType dtype = scan.storage;
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
  cpu::backward<X, D>(in, back, threads());
}

Tensor of_input(const Scan& scan, const Tensor& dgx) {
  if (scan.kind == "gates") return cast(dgx, scan.storage);
  const Tensor w_ih = plain(*scan.weights.w_ih, scan.storage);
  const Tensor dx = empty({scan.T, scan.B, scan.I}, scan.storage);
  cpu::with_gradients(scan.storage, [&](auto x, auto d) {
    using X = typename decltype(x)::Type;
    cpu::input_gradient<X, typename decltype(d)::Type>(dgx, w_ih, dx, threads());
  });
  return dx;
}

}  // namespace

Gradients backward(const Scan& scan, const Cotangents& of, const Needs& needs) {
  const cpu::Back<Tensor> back = room_for(scan, of);
  if (scan.B > 0) {
    cpu::with_gradients(scan.storage, [&](auto x, auto d) {
      run<typename decltype(x)::Type, typename decltype(d)::Type>(scan, back);
    });
  }
  Gradients made{empty({0}, scan.storage), {}, {}};
  auto& [dinput, dstates, dweights] = made;
  if (needs.input && scan.kind != "tokens") dinput = of_input(scan, back.dgx);
  if (needs.states) {
    dstates.push_back(cast(back.dh0, scan.storage));
    if (back.dc0) dstates.push_back(cast(*back.dc0, scan.storage));
  }
  if (needs.weights) {
    const Weights w = of_weights(scan, back);
    for (const Optional& one : {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr})  // as the schema has them
      if (one) dweights.push_back(*one);
  }
  return made;
}

}  // namespace rnnfast::ops
