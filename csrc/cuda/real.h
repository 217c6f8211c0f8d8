// The number that cells compute with in a CUDA kernel: a float whose sigmoid and tanh use the
// hardware's exponential and reciprocal. Their absolute error is below 2 ulp of 1, as that of
// libm's is below 1; they saturate at 0 and ±1 and keep NaN.
#pragma once

#include "cells/math.h"
#include "cuda/device.h"

namespace rnnfast::cuda {

struct Real {
  float value;

  Real() = default;
  RNNFAST_DEVICE Real(float v) : value(v) {}
  RNNFAST_DEVICE Real(int v) : value(float(v)) {}
  RNNFAST_DEVICE explicit operator float() const { return value; }
};

RNNFAST_DEVICE Real operator+(Real a, Real b) { return a.value + b.value; }
RNNFAST_DEVICE Real operator-(Real a, Real b) { return a.value - b.value; }
RNNFAST_DEVICE Real operator*(Real a, Real b) { return a.value * b.value; }

inline constexpr float kLog2e = 1.4426950408889634f;

RNNFAST_DEVICE Real sigmoid(Real x) {
  const float magnitude = x.value < 0 ? -x.value : x.value;
  const float e = exp2_fast(-magnitude * kLog2e);
  const float r = reciprocal_fast(1.0f + e);
  return x.value < 0 ? e * r : r;
}

// (1 − e^-2|x|) / (1 + e^-2|x|), which cancels at small |x|: there the series.
RNNFAST_DEVICE Real tanh(Real x) {
  const float magnitude = x.value < 0 ? -x.value : x.value;
  const float e = exp2_fast(magnitude * (-2 * kLog2e));
  const float large = (1.0f - e) * reciprocal_fast(1.0f + e);
  const float s = x.value * x.value;
  float series = -1382.0f / 155925;
  series = series * s + 62.0f / 2835;
  series = series * s - 17.0f / 315;
  series = series * s + 2.0f / 15;
  series = series * s - 1.0f / 3;
  const float small = x.value + x.value * (s * series);
  return magnitude < 0.35f ? small : (x.value < 0 ? -large : large);
}

RNNFAST_DEVICE Real relu(Real x) { return rnnfast::detail::relu(x.value); }
RNNFAST_DEVICE Real relu_backward(Real dy, Real y) {
  return rnnfast::detail::relu_backward(dy.value, y.value);
}

}  // namespace rnnfast::cuda
