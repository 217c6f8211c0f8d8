// The rules of a scan over sequences of their own length: which steps a sequence takes, in which
// order, and what state each step begins with.
//
// lengths [B]: from its end on, a sequence's outputs are 0 and its state is frozen; a reversed scan
// starts at the sequence's own last step. resets [T, B]: the state is replaced by 0 before the
// step; no gradient crosses.
#pragma once

#include <cstdint>

#include "cells/math.h"

// Files for several instruction sets call these, so none may be a function of its own.
#define RNNFAST_RULE __attribute__((always_inline)) inline

namespace rnnfast {

// The time of a sequence's step-th step. Past its end: that of the padding.
template <class Int>
RNNFAST_HD RNNFAST_RULE Int time_of(Int step, Int length, bool reverse) {
  return reverse && step < length ? length - 1 - step : step;
}

// A length as it counts.
RNNFAST_HD RNNFAST_RULE int64_t within(int64_t length, int64_t T) {
  return length < 0 ? 0 : (length > T ? T : length);
}

struct Rules {
  int64_t T = 0, B = 0;
  const int64_t* lengths = nullptr;  // [B], or null: all T
  const bool* resets = nullptr;      // [T, B], or null: none
  bool reverse = false;

  RNNFAST_HD RNNFAST_RULE int64_t length(int64_t b) const {
    return lengths ? within(lengths[b], T) : T;
  }
  RNNFAST_HD RNNFAST_RULE bool alive(int64_t t, int64_t b) const { return t < length(b); }

  // The time of the step-th step of a scan over all sequences, in which one that has not begun yet
  // or has ended is not alive; and of sequence b's own.
  RNNFAST_HD RNNFAST_RULE int64_t time(int64_t step) const { return time_of(step, T, reverse); }
  RNNFAST_HD RNNFAST_RULE int64_t time(int64_t step, int64_t b) const {
    return time_of(step, length(b), reverse);
  }

  // The state that sequence b has before time t: 0, its initial one, or that after the step before.
  RNNFAST_HD RNNFAST_RULE bool reset(int64_t t, int64_t b) const {
    return resets && resets[t * B + b];
  }
  RNNFAST_HD RNNFAST_RULE bool first(int64_t t, int64_t b) const {
    return t == (reverse ? length(b) - 1 : 0);
  }
  RNNFAST_HD RNNFAST_RULE int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }

  // Its row of `all` [T, B, width], of `initial` [B, width], or `zeros`.
  template <class S>
  RNNFAST_HD RNNFAST_RULE const S* previous(const S* all, const S* initial, const S* zeros,
                                            int64_t t, int64_t b, int64_t width) const {
    if (reset(t, b)) return zeros;
    if (first(t, b)) return initial + b * width;
    return all + (before(t) * B + b) * width;
  }

  // The time of the last step of a sequence that has one.
  RNNFAST_HD RNNFAST_RULE int64_t last(int64_t b) const { return reverse ? 0 : length(b) - 1; }
};

}  // namespace rnnfast
