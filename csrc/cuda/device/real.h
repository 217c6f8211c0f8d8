// The number that cells compute with in a CUDA kernel: a float whose sigmoid and tanh use the
// hardware's exponential and reciprocal. Their absolute error is below 2 ulp of 1, as that of
// libm's is below 1; they saturate at 0 and ±1 and keep NaN.
#pragma once

#include "cells/math.h"
#include "cuda/device/device.h"

namespace rnnfast::cuda {

inline constexpr float kLog2e = 1.4426950408889634f;

// kApproximate: by tanh.approx, one special function instead of two, 2^-11 of the result off.
template <bool kApproximate>
struct RealNumber {
  float value;

  RealNumber() = default;
  RNNFAST_DEVICE RealNumber(float v) : value(v) {}
  RNNFAST_DEVICE RealNumber(int v) : value(float(v)) {}
  RNNFAST_DEVICE explicit operator float() const { return value; }

  RNNFAST_DEVICE friend RealNumber operator+(RealNumber a, RealNumber b) {
    return a.value + b.value;
  }
  RNNFAST_DEVICE friend RealNumber operator-(RealNumber a, RealNumber b) {
    return a.value - b.value;
  }
  RNNFAST_DEVICE friend RealNumber operator*(RealNumber a, RealNumber b) {
    return a.value * b.value;
  }

  // e^-x overflows to infinity, and 1/(1 + ∞) is the 0 that is due.
  RNNFAST_DEVICE friend RealNumber sigmoid(RealNumber x) {
    if constexpr (kApproximate) return multiply_add(0.5f, tanh_fast(0.5f * x.value), 0.5f);
    return reciprocal_fast(1.0f + exp2_fast(x.value * -kLog2e));
  }

  // 1 − 2/(1 + e^2x), which cancels at small |x|: there the series.
  RNNFAST_DEVICE friend RealNumber tanh(RealNumber x) {
    if constexpr (kApproximate) return tanh_fast(x.value);
    const float e = exp2_fast(x.value * (2 * kLog2e));
    const float large = multiply_add(-2.0f, reciprocal_fast(1.0f + e), 1.0f);
    const float s = x.value * x.value;
    const float small = x.value + x.value * (s * (s * (2.0f / 15) - 1.0f / 3));
    return s < 0.01f ? small : large;
  }

  RNNFAST_DEVICE friend RealNumber relu(RealNumber x) { return rnnfast::detail::relu(x.value); }
  RNNFAST_DEVICE friend RealNumber relu_backward(RealNumber dy, RealNumber y) {
    return rnnfast::detail::relu_backward(dy.value, y.value);
  }
};

using Real = RealNumber<false>;

// Of the forward kernels that keep the weights, by what they store: 16 bits have room for the
// approximation, where the build asks for it.
#if defined(RNNFAST_FAST_TANH)
inline constexpr bool kFastTanh = true;
#else
inline constexpr bool kFastTanh = false;
#endif
template <class S>
using ForwardReal = RealNumber<kFastTanh && sizeof(S) == 2>;

}  // namespace rnnfast::cuda
