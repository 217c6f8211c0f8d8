// The functions that a step's operators name (rnnfast/steps/operators.py), of single numbers, for
// host and device.
#pragma once

#include <cmath>

#include "cells/math.h"

namespace rnnfast::functions {

using rnnfast::relu;
using rnnfast::sigmoid;
using rnnfast::tanh;
using std::abs, std::atan, std::atan2, std::ceil, std::cos, std::cosh, std::erf, std::exp,
    std::exp2, std::expm1, std::floor, std::fmod, std::log, std::log10, std::log1p, std::log2,
    std::pow, std::sin, std::sinh, std::sqrt, std::trunc;

// Those that std lacks. A NaN in either of two numbers is kept.
#define RNNFAST_FUNCTIONS(S)                                                              \
  RNNFAST_HD inline S maximum(S a, S b) { return a > b ? a : (b >= a ? b : a + b); }      \
  RNNFAST_HD inline S minimum(S a, S b) { return a < b ? a : (b <= a ? b : a + b); }      \
  RNNFAST_HD inline S sign(S x) { return S((x > 0) - (x < 0)); }                          \
  RNNFAST_HD inline S where(bool condition, S yes, S no) { return condition ? yes : no; } \
  RNNFAST_HD inline S rsqrt(S x) { return S(1) / std::sqrt(x); }                          \
  RNNFAST_HD inline S round(S x) { return std::nearbyint(x); }                            \
  RNNFAST_HD inline S softplus(S x) { /* ln(1 + e^x) without overflow */                  \
    return maximum(x, S(0)) + std::log1p(std::exp(-std::abs(x)));                         \
  }
RNNFAST_FUNCTIONS(float)
RNNFAST_FUNCTIONS(double)
#undef RNNFAST_FUNCTIONS

}  // namespace rnnfast::functions
