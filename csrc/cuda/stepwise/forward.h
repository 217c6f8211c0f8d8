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
    write<S>(f.operand[0], own, cleared ? Scalar<S>(0) : h);
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
  write<S>(f.operand[0], own, cleared ? Scalar<S>(0) : h);
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
  state[0] = Cell<Scalar<S>>::kReadsH && !cleared ? read_wide<S>(f.h_state, own) : Scalar<S>(0);
  if constexpr (kStates == 2) {
    state[1] = cleared ? Scalar<S>(0) : read_wide<S>(f.c_state, own);
  }
}

// What the cell made of a step: state, outputs and what backward needs.
template <template <class> class Cell, class S>
RNNFAST_DEVICE void write_unit(const StepwiseForward& f, const Place& at, int64_t j,
                               const Scalar<S> (&state)[Cell<Scalar<S>>::kStates],
                               const Scalar<S> (&saved)[Cell<Scalar<S>>::kSaved]) {
  using C = Cell<Scalar<S>>;
  constexpr int kSlots = Slots<Cell>::kSlots;
  const int64_t own = at.b * f.H + j, index = at.row(f.step) * f.H + j;
  if (f.training && !C::kSavesOutput) {
    Scalar<S> slots[kSlots];
    for (int s = 0; s < kSlots; ++s) slots[s] = s < C::kSaved ? saved[s] : Scalar<S>(0);
    store_slots(f.gates, index, encode_saved<Cell, S>(slots));
  }
  if constexpr (C::kStates == 2) {
    write_wide<S>(f.c_state, own, state[1]);
    if (f.c != nullptr) write_wide<S>(f.c, index, state[1]);
    if (f.step + 1 == at.length) write<S>(f.c_last, own, state[1]);
  }
  if constexpr (kProjected<C>) {
    write<S>(f.operand[1], own, state[0]);
    if (f.every_m != nullptr) write<S>(f.every_m, index, state[0]);
  } else {
    if constexpr (C::kReadsH) write_wide<S>(f.h_state, own, state[0]);
    publish_h<S>(f, at, j, state[0]);
  }
}

// The phases of W_hh from p to kLast. Those before kLast are made anew, which is cheaper than to
// keep what they made.
template <template <class> class Cell, int p, int kLast, class S>
RNNFAST_DEVICE void phases(const StepwiseForward& f, const Place& at, int64_t j,
                           const SlotVector<S, Slots<Cell>::kSlots>& given,
                           const Scalar<S> (&state)[Cell<Scalar<S>>::kStates],
                           Scalar<S> (&next)[Cell<Scalar<S>>::kStates],
                           Scalar<S> (&saved)[Cell<Scalar<S>>::kSaved]) {
  using V = Scalar<S>;
  using C = Cell<V>;
  constexpr int kFirst = C::kPhases[p].first, n = C::kPhases[p].gates, kOwn = C::kOwnGate - kFirst;
  V gx[n], gh[n];
  for (int g = 0; g < n; ++g) {
    gx[g] = V(widen(given.at[kFirst + g]));
    gh[g] = read<S>(f.product[p], (at.b * n + g) * f.H + j);
  }
  if constexpr (kOwn >= 0 && kOwn < n) gh[kOwn] = gh[kOwn] + V(widen(given.at[C::kGates]));
  C::forward(At<p>{}, gx, gh, state, next, saved);
  if constexpr (p < kLast) phases<Cell, p + 1, kLast, S>(f, at, j, given, state, next, saved);
}

template <template <class> class Cell, int p, class S>
RNNFAST_DEVICE void phase_unit(const StepwiseForward& f, const Place& at, int64_t j) {
  using C = Cell<Scalar<S>>;
  constexpr bool kEnds = p + 1 == kGatePhases<C>;
  if (!at.alive(f.step)) {
    if constexpr (kEnds) pad_unit<S>(f, at, j, kProjected<C>);
    return;
  }
  const auto given = load_slots<S, Slots<Cell>::kSlots>(f.gates, at.row(f.step) * f.H + j);
  Scalar<S> state[C::kStates], next[C::kStates], saved[C::kSaved];
  read_state<Cell, S>(f, at, j, state);
  phases<Cell, 0, p, S>(f, at, j, given, state, next, saved);
  if constexpr (kEnds) {
    write_unit<Cell, S>(f, at, j, next, saved);
  } else {
    constexpr int kOperand = C::kPhases[p + 1].operand;
    write<S>(f.operand[p + 1], at.b * f.H + j, saved[kOperand]);
  }
}

template <class S>
RNNFAST_DEVICE void project_unit(const StepwiseForward& f, const Place& at, int64_t j) {
  if (at.alive(f.step)) {
    publish_h<S>(f, at, j, read<S>(f.product[1], at.b * f.P + j));
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

template <template <class> class Cell, int kPhase, class S>
RNNFAST_KERNEL(kStepwiseThreads)
stepwise_forward(RNNFAST_ARGS StepwiseForward f) {
  const int64_t j = own_unit();
  if (j >= f.H) return;
  for (int64_t b = block_y(); b < f.B; b += grid_y()) {
    forward_detail::phase_unit<Cell, kPhase, S>(f, Place(f, b), j);
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
void Stepwise<S>::phase(CellId cell, int phase, const StepwiseForward& f, Stream stream) {
  dispatch(cell, [&](auto tag) {
    using Tag = decltype(tag);
    using C = typename Tag::template Cell<float>;
    dispatch_phase<C>(phase, [&](auto p) {
      if constexpr (C::kPhases[p].matrix == Matrix::kWhr) {
        launch_stepwise("stepwise_project", &stepwise_project<S>, f, f.P, stream);
      } else {
        launch_stepwise("stepwise_forward", &stepwise_forward<Tag::template Cell, p, S>, f, f.H,
                        stream);
      }
    });
  });
}

}  // namespace rnnfast::cuda
