// What the stepwise kernels share: where a sequence stands at a step, and loads and stores of one
// value.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "cells/list.h"
#include "cuda/device/device.h"
#include "cuda/device/real.h"
#include "cuda/device/saved.h"
#include "cuda/stepwise/arguments.h"
#include "scan/rules.h"

namespace rnnfast::cuda {

inline constexpr int kStepwiseThreads = 256;

// What the cells compute with.
template <class S>
using Scalar = std::conditional_t<std::is_same_v<S, double>, double, Real>;

// Sequence b at a step.
struct Place {
  int64_t length, B, b;
  bool reverse;
  const bool* resets;

  template <class Args>
  RNNFAST_DEVICE Place(const Args& args, int64_t sequence)
      : length(args.T), B(args.B), b(sequence), reverse(args.reverse), resets(args.resets) {
    if (args.lengths != nullptr) length = within(load(args.lengths + b), args.T);
  }

  RNNFAST_DEVICE bool alive(int64_t step) const { return step < length; }

  // Where the step is in tensors [T, B, ·]; past the end, the padding that it fills.
  RNNFAST_DEVICE int64_t row(int64_t step) const { return time_of(step, length, reverse) * B + b; }

  RNNFAST_DEVICE bool resets_at(int64_t step) const {
    return resets != nullptr && load(resets + row(step));
  }
};

// The unit of this thread; a block has units of one sequence, block_y() is its first.
RNNFAST_DEVICE int64_t own_unit() { return int64_t(block_x()) * block_threads() + thread_index(); }

template <class S>
RNNFAST_DEVICE Scalar<S> read(const void* tensor, int64_t index) {
  return Scalar<S>(widen(load(static_cast<const S*>(tensor) + index)));
}

template <class S>
RNNFAST_DEVICE void write(void* tensor, int64_t index, Scalar<S> value) {
  store(static_cast<S*>(tensor) + index, narrow<S>(Wide<S>(value)));
}

// Of tensors in Wide<S>.
template <class S>
RNNFAST_DEVICE Scalar<S> read_wide(const void* tensor, int64_t index) {
  return Scalar<S>(load(static_cast<const Wide<S>*>(tensor) + index));
}

template <class S>
RNNFAST_DEVICE void write_wide(void* tensor, int64_t index, Scalar<S> value) {
  store(static_cast<Wide<S>*>(tensor) + index, Wide<S>(value));
}

// The slots of a unit, in pieces of at most 16 bytes.
template <class S, int N>
RNNFAST_DEVICE SlotVector<S, N> load_slots(const void* tensor, int64_t index) {
  const auto* from = static_cast<const SlotVector<S, N>*>(tensor) + index;
  if constexpr (sizeof(S) * N <= 16) {
    return load(from);
  } else {
    SlotVector<S, N> slots;
    for (int s = 0; s < N; ++s) slots.at[s] = load(from->at + s);
    return slots;
  }
}

template <class S, int N>
RNNFAST_DEVICE void store_slots(void* tensor, int64_t index, const SlotVector<S, N>& slots) {
  auto* to = static_cast<SlotVector<S, N>*>(tensor) + index;
  if constexpr (sizeof(S) * N <= 16) {
    store(to, slots);
  } else {
    for (int s = 0; s < N; ++s) store(to->at + s, slots.at[s]);
  }
}

// f(std::integral_constant<int, p>) for the phase p of cell C that is `phase`.
template <class C, int p = 0, class F>
void dispatch_phase(int phase, const F& f) {
  static_assert(kPhaseCount<C> <= kStepwisePhases, "the kernels have no room for so many products");
  if (phase == p) return f(std::integral_constant<int, p>());
  if constexpr (p + 1 < kPhaseCount<C>) return dispatch_phase<C, p + 1>(phase, f);
  throw std::invalid_argument("the cell has no phase " + std::to_string(phase));
}

// A thread for each of `units` units of a sequence; sequences beyond the grid's limit are looped
// over.
template <class Args>
void launch_stepwise(const char* name, void (*kernel)(Args), const Args& args, int64_t units,
                     Stream stream) {
  constexpr int64_t kMostRows = 65535;
  Launch how;
  how.name = name;
  how.threads = units >= kStepwiseThreads ? kStepwiseThreads : int((units + 31) / 32 * 32);
  how.grid_x = (units + how.threads - 1) / how.threads;
  how.grid_y = args.B < kMostRows ? args.B : kMostRows;
  launch(how, kernel, args, stream);
}

}  // namespace rnnfast::cuda
