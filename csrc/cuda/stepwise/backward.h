// The backward kernels of the stepwise strategy (arguments.h).
#pragma once

#include "cuda/stepwise/common.h"
#include "scan/time_clip.h"

namespace rnnfast::cuda {
namespace backward_detail {

template <class S>
RNNFAST_DEVICE Scalar<S> scale_of(const StepwiseBackward& g) {
  return g.scale == nullptr ? Scalar<S>(1) : Scalar<S>(load(g.scale));
}

// A power of two, so the inverse is exact.
template <class S>
RNNFAST_DEVICE Scalar<S> unscaled(const StepwiseBackward& g, Scalar<S> value) {
  if (g.scale == nullptr) return value;
  return value * Scalar<S>(1 / load(g.scale));
}

template <class S>
RNNFAST_DEVICE Scalar<S> clipped(const StepwiseBackward& g, Scalar<S> gradient) {
  if (g.clip == 0) return gradient;
  const Wide<S> bound = g.clip < 0 ? -g.clip : g.clip;
  return limit_in_time(Wide<S>(gradient), bound, g.clip < 0 ? Wide<S>(0) : bound);
}

// The gradient of h that the step after hands over: what it left in dh_state and its product.
template <class S>
RNNFAST_DEVICE Scalar<S> arriving_dh(const StepwiseBackward& g, const Place& at, int64_t j) {
  const int64_t own = at.b * g.P + j, later = g.step + 1;
  const Scalar<S> carried = read_wide<S>(g.dh_state, own);
  if (!at.alive(later)) return carried;
  if (at.resets_at(later)) return Scalar<S>(0);
  return clipped<S>(g, carried + unscaled<S>(g, read<S>(g.product[0], own)));
}

template <class S>
RNNFAST_DEVICE Scalar<S> arriving_dc(const StepwiseBackward& g, const Place& at, int64_t j) {
  const Scalar<S> carried = read_wide<S>(g.dc_state, at.b * g.H + j);
  if (!at.alive(g.step + 1)) return carried;
  return at.resets_at(g.step + 1) ? Scalar<S>(0) : clipped<S>(g, carried);
}

template <class S>
RNNFAST_DEVICE Scalar<S> with_dy(const StepwiseBackward& g, int64_t index, Scalar<S> dh) {
  return g.dy == nullptr ? dh : dh + read<S>(g.dy, index);
}

// The state before the step, as the cell's backward reads it.
template <template <class> class Cell, class S>
RNNFAST_DEVICE void read_state(const StepwiseBackward& g, const Place& at, int64_t j,
                               Scalar<S> (&state)[Cell<Scalar<S>>::kStates]) {
  constexpr int kStates = Cell<Scalar<S>>::kStates;
  const bool first = g.step == 0, cleared = at.resets_at(g.step);
  const int64_t own = at.b * g.H + j;
  const int64_t earlier = first ? 0 : at.row(g.step - 1) * g.H + j;
  state[0] = Scalar<S>(0);
  if constexpr (Cell<Scalar<S>>::kReadsH) {
    if (!cleared) state[0] = first ? read<S>(g.h0, own) : read<S>(g.y, earlier);
  }
  if constexpr (kStates == 2) {
    state[1] = Scalar<S>(0);
    if (!cleared) state[1] = first ? read<S>(g.c0, own) : read_wide<S>(g.c, earlier);
  }
}

template <template <class> class Cell, class S, int N>
RNNFAST_DEVICE void read_saved(const StepwiseBackward& g, int64_t index, Scalar<S> (&saved)[N]) {
  constexpr int kSlots = Slots<Cell>::kSlots;
  if constexpr (Cell<Scalar<S>>::kSavesOutput) {
    saved[0] = read<S>(g.y, index);
  } else {
    Scalar<S> slots[kSlots];
    decode_saved<Cell>(load_slots<S, kSlots>(g.saved, index), slots);
    for (int s = 0; s < N && s < kSlots; ++s) saved[s] = slots[s];
  }
}

template <class S, int N>
RNNFAST_DEVICE void write_dgates(const StepwiseBackward& g, int64_t index,
                                 const Scalar<S> (&values)[N]) {
  const Scalar<S> scale = scale_of<S>(g);
  SlotVector<S, N> slots;
  for (int s = 0; s < N; ++s) slots.at[s] = narrow<S>(Wide<S>(values[s] * scale));
  store_slots(g.dgates, index, slots);
}

template <class S, int N>
RNNFAST_DEVICE void pad_dgates(const StepwiseBackward& g, int64_t index) {
  SlotVector<S, N> zeros;
  for (int s = 0; s < N; ++s) zeros.at[s] = narrow<S>(0);
  store_slots(g.dgates, index, zeros);
}

// What a unit's backward reads and makes.
template <class C, class V>
struct Unit {
  V saved[C::kSaved], state[C::kStates], dnew[C::kStates], dgx[C::kGates], dgh[C::kGates],
      dstate[C::kStates];
};

// The phases of W_hh from p down to kTo. Those after kTo are made anew, which is cheaper than to
// keep what they made.
template <class C, int p, int kTo, class S, class V>
RNNFAST_DEVICE void phases(const StepwiseBackward& g, int64_t own, Unit<C, V>& u) {
  C::backward(At<p>{}, u.dnew, u.saved, u.state, u.dgx, u.dgh, u.dstate);
  if constexpr (p > kTo) {
    u.dnew[0] = unscaled<S>(g, read<S>(g.product[p], own));
    if constexpr (C::kStates == 2) u.dnew[1] = V(0);
    phases<C, p - 1, kTo, S>(g, own, u);
  }
}

// The gradient of what the last phase of W_hh made.
template <template <class> class Cell, int p, class S>
RNNFAST_DEVICE Scalar<S> dh_of(const StepwiseBackward& g, const Place& at, int64_t j) {
  using C = Cell<Scalar<S>>;
  const int64_t own = at.b * g.H + j;
  if constexpr (kProjected<C>) {
    return unscaled<S>(g, read<S>(g.product[1], own));
  } else if constexpr (p + 1 < kGatePhases<C>) {
    return read_wide<S>(g.dh_state, own);
  } else {
    return with_dy<S>(g, at.row(g.step) * g.H + j, arriving_dh<S>(g, at, j));
  }
}

// A phase leaves its gates' gradients as operands. Until the first one has been there, dh_state has
// the whole gradient of h, and dc_state is as it was.
template <template <class> class Cell, int p, class S>
RNNFAST_DEVICE void phase_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  using V = Scalar<S>;
  using C = Cell<V>;
  constexpr int G = C::kGates, kSlots = Slots<Cell>::kSlots;
  constexpr int kFirst = C::kPhases[p].first, n = C::kPhases[p].gates;
  const int64_t own = at.b * g.H + j, index = at.row(g.step) * g.H + j;
  if (!at.alive(g.step)) {
    if constexpr (p == 0) pad_dgates<S, kSlots>(g, index);
    return;
  }
  Unit<C, V> u;
  const V dh = u.dnew[0] = dh_of<Cell, p, S>(g, at, j);
  if constexpr (C::kStates == 2) {
    u.dnew[1] = arriving_dc<S>(g, at, j);
    if (g.dc != nullptr) u.dnew[1] = u.dnew[1] + read<S>(g.dc, index);
  }
  read_saved<Cell, S>(g, index, u.saved);
  read_state<Cell, S>(g, at, j, u.state);
  phases<C, kGatePhases<C> - 1, p, S>(g, own, u);
  if constexpr (p == 0) {
    V slots[kSlots];
    for (int s = 0; s < kSlots; ++s) slots[s] = s < G ? u.dgx[s] : V(0);
    if constexpr (C::kOwnGate >= 0) slots[G] = u.dgh[C::kOwnGate];
    write_dgates<S>(g, index, slots);
  }
  const V scale = scale_of<S>(g);
  for (int s = 0; s < n; ++s) {
    write<S>(g.operand[p], (at.b * n + s) * g.H + j, u.dgh[kFirst + s] * scale);
  }
  if constexpr (!kProjected<C>) write_wide<S>(g.dh_state, own, p == 0 ? u.dstate[0] : dh);
  if constexpr (C::kStates == 2 && p == 0) write_wide<S>(g.dc_state, own, u.dstate[1]);
}

template <class S>
RNNFAST_DEVICE void unproject_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  const int64_t own = at.b * g.P + j, index = at.row(g.step) * g.P + j;
  if (!at.alive(g.step)) return write<S>(g.every_dh, index, Scalar<S>(0));
  const Scalar<S> dh = with_dy<S>(g, index, arriving_dh<S>(g, at, j)) * scale_of<S>(g);
  write<S>(g.every_dh, index, dh);
  write<S>(g.operand[1], own, dh);
  write_wide<S>(g.dh_state, own, Scalar<S>(0));  // all of it goes through the product
}

template <class S>
RNNFAST_DEVICE void finish_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  if (j < g.P) write<S>(g.dh0, at.b * g.P + j, arriving_dh<S>(g, at, j));
  if (g.dc0 != nullptr && j < g.H) write<S>(g.dc0, at.b * g.H + j, arriving_dc<S>(g, at, j));
}

}  // namespace backward_detail

template <template <class> class Cell, int kPhase, class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_backward(RNNFAST_ARGS StepwiseBackward g) {
  const int64_t j = own_unit();
  if (j >= g.H) return;
  for (int64_t b = block_y(); b < g.B; b += grid_y()) {
    backward_detail::phase_unit<Cell, kPhase, S>(g, Place(g, b), j);
  }
}

template <class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_unproject(RNNFAST_ARGS StepwiseBackward g) {
  const int64_t j = own_unit();
  if (j >= g.P) return;
  for (int64_t b = block_y(); b < g.B; b += grid_y()) {
    backward_detail::unproject_unit<S>(g, Place(g, b), j);
  }
}

template <class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_finish(RNNFAST_ARGS StepwiseBackward g) {
  const int64_t j = own_unit();
  for (int64_t b = block_y(); b < g.B; b += grid_y()) {
    backward_detail::finish_unit<S>(g, Place(g, b), j);
  }
}

template <class S>
void Stepwise<S>::phase(CellId cell, int phase, const StepwiseBackward& g, Stream stream) {
  dispatch(cell, [&](auto tag) {
    using Tag = decltype(tag);
    using C = typename Tag::template Cell<float>;
    dispatch_phase<C>(phase, [&](auto p) {
      if constexpr (C::kPhases[p].matrix == Matrix::kWhr) {
        launch_stepwise("stepwise_unproject", &stepwise_unproject<S>, g, g.P, stream);
      } else {
        launch_stepwise("stepwise_backward", &stepwise_backward<Tag::template Cell, p, S>, g, g.H,
                        stream);
      }
    });
  });
}

template <class S>
void Stepwise<S>::finish(const StepwiseBackward& g, Stream stream) {
  launch_stepwise("stepwise_finish", &stepwise_finish<S>, g, g.P > g.H ? g.P : g.H, stream);
}

}  // namespace rnnfast::cuda
