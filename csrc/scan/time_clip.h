// The option grad_clip_time: the gradient of a state is limited, element by element, whenever a
// step of the backward pass hands it to the step before (docs/clipping.md).
#pragma once

#include <limits>

#include "cells/math.h"

namespace rnnfast {

// What lies beyond ±bound becomes ±limit.
template <class S>
struct TimeClip {
  S bound = std::numeric_limits<S>::infinity();
  S limit = 0;

  // `v` as the op has it: 0 off, v > 0 clips to [-v, v], v < 0 zeroes what is beyond -v.
  static TimeClip of(double v) {
    TimeClip clip;
    if (v == 0) return clip;
    clip.bound = static_cast<S>(v < 0 ? -v : v);
    clip.limit = v < 0 ? S(0) : clip.bound;
    return clip;
  }

  bool off() const { return bound == std::numeric_limits<S>::infinity(); }
};

// A NaN is kept.
template <class S>
RNNFAST_HD inline S limit_in_time(S g, S bound, S limit) {
  return g > bound ? limit : (g < -bound ? -limit : g);
}

}  // namespace rnnfast
