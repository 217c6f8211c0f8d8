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
  return clipped<S>(g, carried + unscaled<S>(g, read<S>(g.product, own)));
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
  if constexpr (kReadsH<Cell>) {
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
  if constexpr (kSlots == 1) {
    saved[0] = read<S>(g.y, index);
  } else {
    Scalar<S> slots[kSlots];
    decode_saved<Cell>(load_slots<S, kSlots>(g.saved, index), slots);
    for (int s = 0; s < kSlots; ++s) saved[s] = slots[s];
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

// One phase, or the product's side of a projected cell.
template <template <class> class Cell, class S>
RNNFAST_DEVICE void step_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  using V = Scalar<S>;
  using C = Cell<V>;
  constexpr int G = C::kGates, kSlots = Slots<Cell>::kSlots;
  const int64_t own = at.b * g.H + j, index = at.row(g.step) * g.H + j;
  if (!at.alive(g.step)) return pad_dgates<S, kSlots>(g, index);
  V dnew[C::kStates], saved[C::kSaved], state[C::kStates], dgx[G], dgh[G], dstate[C::kStates];
  if constexpr (C::kProjected) {
    dnew[0] = unscaled<S>(g, read<S>(g.dm, own));
  } else {
    dnew[0] = with_dy<S>(g, index, arriving_dh<S>(g, at, j));
  }
  if constexpr (C::kStates == 2) {
    dnew[1] = arriving_dc<S>(g, at, j);
    if (g.dc != nullptr) dnew[1] = dnew[1] + read<S>(g.dc, index);
  }
  read_saved<Cell, S>(g, index, saved);
  read_state<Cell, S>(g, at, j, state);
  C::backward(dnew, saved, state, dgx, dgh, dstate);
  V slots[kSlots];
  for (int s = 0; s < G; ++s) slots[s] = dgx[s];
  if constexpr (kSlots > G) slots[G] = dgh[G - 1];
  write_dgates<S>(g, index, slots);
  const V scale = scale_of<S>(g);
  for (int s = 0; s < G; ++s) write<S>(g.operand, (at.b * G + s) * g.H + j, dgh[s] * scale);
  if constexpr (!C::kProjected) write_wide<S>(g.dh_state, own, dstate[0]);
  if constexpr (C::kStates == 2) write_wide<S>(g.dc_state, own, dstate[1]);
}

// The gradients of the second phase of a two-phase cell.
template <class S>
struct Candidate {
  Scalar<S> saved[4], state[1], dg_z, dg_n, dstate[1];

  RNNFAST_DEVICE Candidate(const StepwiseBackward& g, const Place& at, int64_t j, Scalar<S> dh) {
    const Scalar<S> dnew[1] = {dh};
    read_saved<GruResetBefore, S>(g, at.row(g.step) * g.H + j, saved);
    read_state<GruResetBefore, S>(g, at, j, state);
    GruResetBefore<Scalar<S>>::backward_candidate(dnew, saved, state, dg_z, dg_n, dstate);
  }
};

// Leaves the whole gradient of h in dh_state.
template <class S>
RNNFAST_DEVICE void candidate_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  if (!at.alive(g.step)) return;
  const int64_t own = at.b * g.H + j;
  const Scalar<S> dh = with_dy<S>(g, at.row(g.step) * g.H + j, arriving_dh<S>(g, at, j));
  const Candidate<S> found(g, at, j, dh);
  write_wide<S>(g.dh_state, own, dh);
  write<S>(g.candidate_operand, own, found.dg_n * scale_of<S>(g));
}

template <class S>
RNNFAST_DEVICE void reset_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  using V = Scalar<S>;
  const int64_t own = at.b * g.H + j, index = at.row(g.step) * g.H + j;
  if (!at.alive(g.step)) return pad_dgates<S, 4>(g, index);
  Candidate<S> found(g, at, j, read_wide<S>(g.dh_state, own));
  const V du = unscaled<S>(g, read<S>(g.du, own)), scale = scale_of<S>(g);
  V dg_r;
  GruResetBefore<V>::backward_reset(du, found.saved, found.state, dg_r, found.dstate);
  const V slots[4] = {dg_r, found.dg_z, found.dg_n, V(0)};
  write_dgates<S>(g, index, slots);
  write<S>(g.operand, at.b * 2 * g.H + j, dg_r * scale);
  write<S>(g.operand, (at.b * 2 + 1) * g.H + j, found.dg_z * scale);
  write_wide<S>(g.dh_state, own, found.dstate[0]);
}

template <class S>
RNNFAST_DEVICE void unproject_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  const int64_t own = at.b * g.P + j, index = at.row(g.step) * g.P + j;
  if (!at.alive(g.step)) return write<S>(g.every_dh, index, Scalar<S>(0));
  const Scalar<S> dh = with_dy<S>(g, index, arriving_dh<S>(g, at, j)) * scale_of<S>(g);
  write<S>(g.every_dh, index, dh);
  write<S>(g.h_operand, own, dh);
  write_wide<S>(g.dh_state, own, Scalar<S>(0));  // all of it goes through the product
}

template <class S>
RNNFAST_DEVICE void finish_unit(const StepwiseBackward& g, const Place& at, int64_t j) {
  if (j < g.P) write<S>(g.dh0, at.b * g.P + j, arriving_dh<S>(g, at, j));
  if (g.dc0 != nullptr && j < g.H) write<S>(g.dc0, at.b * g.H + j, arriving_dc<S>(g, at, j));
}

}  // namespace backward_detail

template <template <class> class Cell, class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_backward(RNNFAST_ARGS StepwiseBackward g) {
  const int64_t j = own_unit();
  if (j >= g.H) return;
  for (int64_t b = block_y(); b < g.B; b += grid_y()) {
    if constexpr (Cell<float>::kPhases == 2) {
      backward_detail::reset_unit<S>(g, Place(g, b), j);
    } else {
      backward_detail::step_unit<Cell, S>(g, Place(g, b), j);
    }
  }
}

template <class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_candidate(RNNFAST_ARGS StepwiseBackward g) {
  const int64_t j = own_unit();
  if (j >= g.H) return;
  for (int64_t b = block_y(); b < g.B; b += grid_y()) {
    backward_detail::candidate_unit<S>(g, Place(g, b), j);
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
void Stepwise<S>::step(CellId cell, const StepwiseBackward& g, Stream stream) {
  dispatch(cell, [&](auto tag) {
    launch_stepwise("stepwise_backward", &stepwise_backward<decltype(tag)::template Cell, S>, g,
                    g.H, stream);
  });
}

template <class S>
void Stepwise<S>::candidate(const StepwiseBackward& g, Stream stream) {
  launch_stepwise("stepwise_candidate", &stepwise_candidate<S>, g, g.H, stream);
}

template <class S>
void Stepwise<S>::unproject(const StepwiseBackward& g, Stream stream) {
  launch_stepwise("stepwise_unproject", &stepwise_unproject<S>, g, g.P, stream);
}

template <class S>
void Stepwise<S>::finish(const StepwiseBackward& g, Stream stream) {
  launch_stepwise("stepwise_finish", &stepwise_finish<S>, g, g.P > g.H ? g.P : g.H, stream);
}

}  // namespace rnnfast::cuda
