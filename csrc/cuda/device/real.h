// The number that cells compute with in a CUDA kernel: a float whose sigmoid and tanh use the
// hardware's exponential and reciprocal. Their absolute error is below 2 ulp of 1, as that of
// libm's is below 1; they saturate at 0 and ±1 and keep NaN.
#pragma once

#include "cells/math.h"
#include "cuda/device/device.h"

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

// e^-x overflows to infinity, and 1/(1 + ∞) is the 0 that is due.
RNNFAST_DEVICE Real sigmoid(Real x) { return reciprocal_fast(1.0f + exp2_fast(x.value * -kLog2e)); }

// 1 − 2/(1 + e^2x), which cancels at small |x|: there the series.
RNNFAST_DEVICE Real tanh(Real x) {
  const float e = exp2_fast(x.value * (2 * kLog2e));
  const float large = multiply_add(-2.0f, reciprocal_fast(1.0f + e), 1.0f);
  const float s = x.value * x.value;
  const float small = x.value + x.value * (s * (s * (2.0f / 15) - 1.0f / 3));
  return s < 0.01f ? small : large;
}

RNNFAST_DEVICE Real relu(Real x) { return rnnfast::detail::relu(x.value); }
RNNFAST_DEVICE Real relu_backward(Real dy, Real y) {
  return rnnfast::detail::relu_backward(dy.value, y.value);
}

}  // namespace rnnfast::cuda
