// The forward kernels of the stepwise strategy (arguments.h).
#pragma once

#include "cuda/stepwise/common.h"

namespace rnnfast::cuda {
namespace forward_detail {

template <class S>
RNNFAST_DEVICE void start_unit(const StepwiseForward& f, const Place& at, int64_t j) {
  const bool empty = at.length == 0;
  if (j < f.P) {
    const int64_t own = at.b * f.P + j;
    const Scalar<S> h = read<S>(f.h0, own);
    const bool cleared = !empty && at.resets_at(0);
    write<S>(f.operand, own, cleared ? Scalar<S>(0) : h);
    if (f.h_state) write_wide<S>(f.h_state, own, h);
    if (empty) write<S>(f.h_last, own, h);
  }
  if (f.c0 != nullptr && j < f.H) {
    const int64_t own = at.b * f.H + j;
    const Scalar<S> c = read<S>(f.c0, own);
    write_wide<S>(f.c_state, own, c);
    if (empty) write<S>(f.c_last, own, c);
  }
}

// h of a step that was taken.
template <class S>
RNNFAST_DEVICE void publish_h(const StepwiseForward& f, const Place& at, int64_t j, Scalar<S> h) {
  const int64_t own = at.b * f.P + j, next = f.step + 1;
  write<S>(f.y, at.row(f.step) * f.P + j, h);
  const bool cleared = at.alive(next) && at.resets_at(next);
  write<S>(f.operand, own, cleared ? Scalar<S>(0) : h);
  if (next == at.length) write<S>(f.h_last, own, h);
}

// Zeros where the padding is.
template <class S>
RNNFAST_DEVICE void pad_unit(const StepwiseForward& f, const Place& at, int64_t j, bool projected) {
  const int64_t index = at.row(f.step) * f.H + j;
  if (!projected) write<S>(f.y, index, Scalar<S>(0));
  if (f.c != nullptr) write_wide<S>(f.c, index, Scalar<S>(0));
  if (f.every_m != nullptr) write<S>(f.every_m, index, Scalar<S>(0));
}

template <template <class> class Cell, class S>
RNNFAST_DEVICE void read_state(const StepwiseForward& f, const Place& at, int64_t j,
                               Scalar<S> (&state)[Cell<Scalar<S>>::kStates]) {
  constexpr int kStates = Cell<Scalar<S>>::kStates;
  const int64_t own = at.b * f.H + j;
  const bool cleared = at.resets_at(f.step);
  state[0] = kReadsH<Cell> && !cleared ? read_wide<S>(f.h_state, own) : Scalar<S>(0);
  if constexpr (kStates == 2) {
    state[1] = cleared ? Scalar<S>(0) : read_wide<S>(f.c_state, own);
  }
}

// What the cell made of a step: state, outputs and what backward needs.
template <template <class> class Cell, class S>
RNNFAST_DEVICE void write_unit(const StepwiseForward& f, const Place& at, int64_t j,
                               const Scalar<S> (&state)[Cell<Scalar<S>>::kStates],
                               const Scalar<S> (&saved)[Slots<Cell>::kSlots]) {
  using C = Cell<Scalar<S>>;
  const int64_t own = at.b * f.H + j, index = at.row(f.step) * f.H + j;
  if (f.training && C::kGates > 1) {
    store_slots(f.gates, index, encode_saved<Cell, S>(saved));
  }
  if constexpr (C::kStates == 2) {
    write_wide<S>(f.c_state, own, state[1]);
    if (f.c != nullptr) write_wide<S>(f.c, index, state[1]);
    if (f.step + 1 == at.length) write<S>(f.c_last, own, state[1]);
  }
  if constexpr (C::kProjected) {
    write<S>(f.m, own, state[0]);
    if (f.every_m != nullptr) write<S>(f.every_m, index, state[0]);
  } else {
    if constexpr (kReadsH<Cell>) write_wide<S>(f.h_state, own, state[0]);
    publish_h<S>(f, at, j, state[0]);
  }
}

// One phase: gx of every gate but the GRU's fourth slot, which belongs to the product's part.
template <template <class> class Cell, class S>
RNNFAST_DEVICE void step_unit(const StepwiseForward& f, const Place& at, int64_t j) {
  using V = Scalar<S>;
  using C = Cell<V>;
  constexpr int G = C::kGates, kSlots = Slots<Cell>::kSlots;
  if (!at.alive(f.step)) return pad_unit<S>(f, at, j, C::kProjected);
  const auto given = load_slots<S, kSlots>(f.gates, at.row(f.step) * f.H + j);
  V gx[G], gh[G], state[C::kStates], next[C::kStates], all_saved[C::kSaved], saved[kSlots];
  for (int g = 0; g < G; ++g) {
    gx[g] = V(widen(given.at[g]));
    gh[g] = read<S>(f.product, (at.b * G + g) * f.H + j);
  }
  if constexpr (kSlots > G) gh[G - 1] = gh[G - 1] + V(widen(given.at[G]));
  read_state<Cell, S>(f, at, j, state);
  C::forward(gx, gh, state, next, all_saved);
  for (int s = 0; s < kSlots; ++s) saved[s] = all_saved[s];
  write_unit<Cell, S>(f, at, j, next, saved);
}

// The first phase of a two-phase cell: fills saved but for n.
template <class S>
RNNFAST_DEVICE void reset_phase(const StepwiseForward& f, const Place& at, int64_t j,
                                const SlotVector<S, 4>& given, Scalar<S> (&state)[1],
                                Scalar<S> (&saved)[4]) {
  using V = Scalar<S>;
  V gx[2], gh[2];
  for (int g = 0; g < 2; ++g) {
    gx[g] = V(widen(given.at[g]));
    gh[g] = read<S>(f.product, (at.b * 2 + g) * f.H + j);
  }
  read_state<GruResetBefore, S>(f, at, j, state);
  GruResetBefore<V>::forward_reset(gx, gh, state, saved);
}

template <class S>
RNNFAST_DEVICE void reset_unit(const StepwiseForward& f, const Place& at, int64_t j) {
  if (!at.alive(f.step)) return;
  Scalar<S> state[1], saved[4];
  const auto given = load_slots<S, 4>(f.gates, at.row(f.step) * f.H + j);
  reset_phase<S>(f, at, j, given, state, saved);
  write<S>(f.u, at.b * f.H + j, saved[GruResetBefore<Scalar<S>>::kSavedU]);
}

// The second phase; makes the first anew, which is cheaper than to keep it.
template <class S>
RNNFAST_DEVICE void candidate_unit(const StepwiseForward& f, const Place& at, int64_t j) {
  using V = Scalar<S>;
  if (!at.alive(f.step)) return pad_unit<S>(f, at, j, false);
  V state[1], next[1], saved[4];
  const auto given = load_slots<S, 4>(f.gates, at.row(f.step) * f.H + j);
  reset_phase<S>(f, at, j, given, state, saved);
  const V gh_n = read<S>(f.candidate, at.b * f.H + j);
  GruResetBefore<V>::forward_candidate(V(widen(given.at[2])), gh_n, state, next, saved);
  write_unit<GruResetBefore, S>(f, at, j, next, saved);
}

template <class S>
RNNFAST_DEVICE void project_unit(const StepwiseForward& f, const Place& at, int64_t j) {
  if (at.alive(f.step)) {
    publish_h<S>(f, at, j, read<S>(f.projected, at.b * f.P + j));
  } else {
    write<S>(f.y, at.row(f.step) * f.P + j, Scalar<S>(0));
  }
}

}  // namespace forward_detail

template <class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_start(RNNFAST_ARGS StepwiseForward f) {
  const int64_t j = own_unit();
  for (int64_t b = block_y(); b < f.B; b += grid_y()) {
    forward_detail::start_unit<S>(f, Place(f, b), j);
  }
}

template <template <class> class Cell, class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_forward(RNNFAST_ARGS StepwiseForward f) {
  const int64_t j = own_unit();
  if (j >= f.H) return;
  for (int64_t b = block_y(); b < f.B; b += grid_y()) {
    if constexpr (Cell<float>::kPhases == 2) {
      forward_detail::candidate_unit<S>(f, Place(f, b), j);
    } else {
      forward_detail::step_unit<Cell, S>(f, Place(f, b), j);
    }
  }
}

template <class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_reset(RNNFAST_ARGS StepwiseForward f) {
  const int64_t j = own_unit();
  if (j >= f.H) return;
  for (int64_t b = block_y(); b < f.B; b += grid_y()) {
    forward_detail::reset_unit<S>(f, Place(f, b), j);
  }
}

template <class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_project(RNNFAST_ARGS StepwiseForward f) {
  const int64_t j = own_unit();
  if (j >= f.P) return;
  for (int64_t b = block_y(); b < f.B; b += grid_y()) {
    forward_detail::project_unit<S>(f, Place(f, b), j);
  }
}

template <class S>
void Stepwise<S>::start(const StepwiseForward& f, Stream stream) {
  launch_stepwise("stepwise_start", &stepwise_start<S>, f, f.P > f.H ? f.P : f.H, stream);
}

template <class S>
void Stepwise<S>::step(CellId cell, const StepwiseForward& f, Stream stream) {
  dispatch(cell, [&](auto tag) {
    launch_stepwise("stepwise_forward", &stepwise_forward<decltype(tag)::template Cell, S>, f, f.H,
                    stream);
  });
}

template <class S>
void Stepwise<S>::reset(const StepwiseForward& f, Stream stream) {
  launch_stepwise("stepwise_reset", &stepwise_reset<S>, f, f.H, stream);
}

template <class S>
void Stepwise<S>::project(const StepwiseForward& f, Stream stream) {
  launch_stepwise("stepwise_project", &stepwise_project<S>, f, f.P, stream);
}

}  // namespace rnnfast::cuda
