// Activations and their derivatives, for host and device. No torch, CUDA or OpenMP header is
// included here.
//
// The cells call these without a namespace. A vector type V (one SIMD register as a class) is
// served by defining, in the namespace of V, `V sigmoid(V)`, `V tanh(V)`, `V relu(V)` and `V
// relu_backward(V, V)`; together with +, -, * and a constructor from a number that is all a cell
// asks of V.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define RNNFAST_HD __host__ __device__
#else
#define RNNFAST_HD
#endif

namespace rnnfast {
namespace detail {

// 1 / (1 + e^-x). The exponent is never positive, so nothing overflows, and results below the
// smallest normal number are rounded like any other instead of collapsing to 0.
template <class T>
RNNFAST_HD inline T sigmoid(T x) {
  const T e = std::exp(-std::fabs(x));
  return (x < T(0) ? e : T(1)) / (T(1) + e);
}

// A NaN is kept, as in torch.
template <class T>
RNNFAST_HD inline T relu(T x) {
  return x < T(0) ? T(0) : x;
}

// Slope 0 at 0, and a choice rather than a product (0 · inf is no NaN), as torch's
// threshold_backward.
template <class T>
RNNFAST_HD inline T relu_backward(T dy, T y) {
  return y <= T(0) ? T(0) : dy;
}

}  // namespace detail

RNNFAST_HD inline float sigmoid(float x) { return detail::sigmoid(x); }
RNNFAST_HD inline double sigmoid(double x) { return detail::sigmoid(x); }
RNNFAST_HD inline float tanh(float x) { return std::tanh(x); }
RNNFAST_HD inline double tanh(double x) { return std::tanh(x); }
RNNFAST_HD inline float relu(float x) { return detail::relu(x); }
RNNFAST_HD inline double relu(double x) { return detail::relu(x); }

// Gradients: dy is the gradient of the activation's output y; the result is the gradient of its
// input.
RNNFAST_HD inline float relu_backward(float dy, float y) { return detail::relu_backward(dy, y); }
RNNFAST_HD inline double relu_backward(double dy, double y) { return detail::relu_backward(dy, y); }

template <class V>
RNNFAST_HD inline V sigmoid_backward(V dy, V y) {
  return dy * (V(1) - y) * y;
}

template <class V>
RNNFAST_HD inline V tanh_backward(V dy, V y) {
  return dy * (V(1) - y * y);
}

}  // namespace rnnfast
