// A scan by the host kernels for whoever has tensors: the kernels' arguments are filled here and
// nowhere else. `Tensor` is a class with const_data_ptr() and mutable_data_ptr(): torch's of the
// stable ABI (csrc/ops) or that of the Python module (csrc/python). What they hold was checked.
#pragma once

#include <optional>

#include "cpu/crowd.h"
#include "cpu/host.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "scan/plan.h"

namespace rnnfast::cpu {

// What forward and backward have in common. All contiguous, of one dtype.
template <class Tensor>
struct Given {
  const CellInfo& cell;
  int64_t T, B, H, P;
  bool reverse, training;
  Tensor w_hh, h0;
  std::optional<Tensor> b_hh, w_hr, c0, lengths, resets;
};

// x and what it is multiplied with, where the scan makes the input's part of the gates. x of any
// strides but the last.
template <class Tensor>
struct GivenInput {
  Tensor x, w_ih;
  std::optional<Tensor> b_ih;
  int64_t I, x_step, x_row;
};

// What forward writes; `gates` it reads too, where it is given no input.
template <class Tensor>
struct Made {
  Tensor y, h_last;
  std::optional<Tensor> gates{}, fixed{}, c_last{}, c{}, extra{};
};

// What backward reads and writes: as `Backward` has them.
template <class Tensor>
struct Back {
  std::optional<Tensor> gates, fixed, extra;
  Tensor y;
  std::optional<Tensor> c, dy, dc;
  Tensor dh_last;
  std::optional<Tensor> dc_last;
  Tensor dgx, dh0;
  std::optional<Tensor> dgh_own, dh_total, dc0;
  double grad_clip_time;
  bool of_states = true;
  std::optional<Tensor> w_ih{}, dx{};  // where the scan makes dx, wide
};

template <class S, class Tensor>
S* data(const Tensor& tensor) {
  if constexpr (std::is_const_v<S>) {
    return static_cast<S*>(tensor.const_data_ptr());
  } else {
    return static_cast<S*>(tensor.mutable_data_ptr());
  }
}

template <class S, class Tensor>
S* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<S>(*tensor) : nullptr;
}

// Whether gradients of gates are stored like the tensors, in 16 bits, and multiplied in pairs.
template <class X>
bool in_pairs() {
  return std::is_same_v<X, BFloat16> && kernels().dots != nullptr;
}

// The same as a dtype, of tensors of this one; `wide`: what their numbers are computed in.
template <class Type>
Type of_gates(Type dtype, Type wide) {
  return dtype == Type::BFloat16 && in_pairs<BFloat16>() ? dtype : wide;
}

// body(Stored<X>{}, Stored<D>{}): X as with_storage has it, and what gradients of gates are stored as.
template <class Type, class Body>
auto with_gradients(Type dtype, const Body& body) {
  return with_storage(dtype, [&](auto x) {
    using X = typename decltype(x)::Type;
    if constexpr (std::is_same_v<X, BFloat16>) {
      if (in_pairs<X>()) return body(x, x);
    }
    return body(x, Stored<Wide<X>>{});
  });
}

template <class X>
Widths widths() {
  constexpr int kComputed = sizeof(Wide<X>);
  return {kComputed, in_pairs<X>() ? int(sizeof(X)) : kComputed};
}

inline bool call(CellId id, const Forward<float>& f) { return kernels().forward_f32(id, f); }
inline bool call(CellId id, const Forward<double>& f) { return kernels().forward_f64(id, f); }
inline bool call(CellId id, const Forward<Half>& f) { return kernels().f16.forward(id, f); }
inline bool call(CellId id, const Forward<BFloat16>& f) {
  return in_pairs<BFloat16>() ? kernels().dots->forward(id, f) : kernels().bf16.forward(id, f);
}
inline bool call(CellId id, const Backward<float>& g) { return kernels().backward_f32(id, g); }
inline bool call(CellId id, const Backward<double>& g) { return kernels().backward_f64(id, g); }
inline bool call(CellId id, const Backward<Half>& g) { return kernels().f16.backward(id, g); }
inline bool call(CellId id, const Backward<BFloat16>& g) { return kernels().bf16.backward(id, g); }
inline bool call(CellId id, const Backward<BFloat16, BFloat16>& g) {
  return kernels().dots->backward(id, g);
}

// The common part of a kernel's arguments. I: of x, where the scan makes the input's part.
template <class X, class Tensor>
void fill(Scan<X>& a, const Given<Tensor>& in, int threads, bool makes_input) {
  a.T = in.T, a.B = in.B, a.H = in.H, a.P = in.P;
  a.reverse = in.reverse, a.training = in.training;
  const HostPlan plan = plan_host(in.cell, in.B, in.H, in.P, widths<X>(), host_with(threads));
  a.split = {crowd().threads(plan.rows, plan.step_ns * plan.rows * double(in.T)),
             makes_input || crowd().known() ? 1 : plan.units};
  a.w_hh = data<const X>(in.w_hh), a.b_hh = data<const X>(in.b_hh);
  a.w_hr = data<const X>(in.w_hr);
  a.lengths = data<const int64_t>(in.lengths), a.resets = data<const bool>(in.resets);
  a.h0 = data<const X>(in.h0), a.c0 = data<const X>(in.c0);
}

// Runs a pass whose arguments are filled, but for its workspace; `more`: bytes of it that the pass
// needs for what it makes beside the scan.
template <class Pass>
void run(const CellInfo& cell, Pass& pass, int storage_bytes, int64_t more) {
  const int64_t bytes =
      kernels().workspace(cell.id, pass.B, pass.H, pass.P, storage_bytes, pass.split);
  pass.workspace = scratch(bytes + more);
  if (call(cell.id, pass)) crowd().seen();
}

// Whether a scan is one step of so few sequences that its weights need not be packed.
inline bool is_in_place(int64_t T, int64_t B) { return T == 1 && B <= kernels().in_place_rows; }

// Threads for such a step: each has to have enough weights to read.
inline int in_place_threads(int64_t weights, int threads) {
  constexpr int64_t kLeastWeights = 150000;
  if (crowd().known()) return 1;
  return static_cast<int>(std::min<int64_t>(threads, 1 + weights / kLeastWeights));
}

// X: what the tensors hold.
template <class X, class Tensor>
void forward(const Given<Tensor>& in, const std::optional<GivenInput<Tensor>>& input,
             const Made<Tensor>& made, int threads) {
  Forward<X> f;
  fill(f, in, threads, input.has_value());
  f.in_place = is_in_place(in.T, in.B);
  if (f.in_place) {
    const int64_t weights = in.cell.gates * in.H * (in.P + (input ? input->I : 0));
    f.split = {1, in_place_threads(weights, threads)};
  }
  if (input) {
    f.x = data<const X>(input->x), f.w_ih = data<const X>(input->w_ih);
    f.b_ih = data<const X>(input->b_ih);
    f.I = input->I, f.x_step = input->x_step, f.x_row = input->x_row;
  }
  f.gates = data<Wide<X>>(made.gates), f.fixed = data<int16_t>(made.fixed);
  f.extra = data<X>(made.extra), f.y = data<X>(made.y), f.c = data<X>(made.c);
  f.h_last = data<X>(made.h_last), f.c_last = data<X>(made.c_last);
  const int64_t columns = in.cell.gates * in.H;
  run(in.cell, f, sizeof(X),
      f.I == 0 ? 0 : kernels().input_room(columns, in.B, f.I, sizeof(X), f.split));
}

// D: what gradients of gates are stored as.
template <class X, class D, class Tensor>
void backward(const Given<Tensor>& in, const Back<Tensor>& back, int threads) {
  using S = Wide<X>;
  Backward<X, D> g;
  fill(g, in, threads, back.dx.has_value());
  g.clip = TimeClip<S>::of(back.grad_clip_time);
  g.gates = data<const S>(back.gates), g.fixed = data<const int16_t>(back.fixed);
  g.extra = data<const X>(back.extra), g.y = data<const X>(back.y), g.c = data<const X>(back.c);
  g.dy = data<const X>(back.dy), g.dc = data<const X>(back.dc);
  g.dh_last = data<const X>(back.dh_last), g.dc_last = data<const X>(back.dc_last);
  g.dgx = data<D>(back.dgx), g.dgh_own = data<D>(back.dgh_own);
  g.dh_total = data<D>(back.dh_total), g.dh0 = data<S>(back.dh0), g.dc0 = data<S>(back.dc0);
  g.of_states = back.of_states;
  g.dx = data<S>(back.dx), g.w_ih = data<const X>(back.w_ih);
  if (back.dx) g.I = back.w_ih->size(1);
  const int64_t columns = in.cell.gates * in.H;
  run(in.cell, g, sizeof(X), g.dx ? kernels().input_gradient_room(columns, g.I, sizeof(X)) : 0);
}

}  // namespace rnnfast::cpu
