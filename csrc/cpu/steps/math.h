// The pointwise operators of a step (rnnfast/steps/operators.py), of vectors and of scalars.
#pragma once

#include <cmath>

#include "cells/functions.h"
#include "cpu/vec.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// What has no vector form is done lane by lane.
template <class S, class F>
inline Vec<S> each(Vec<S> x, const F& f) {
  for (int lane = 0; lane < Vec<S>::kLanes; ++lane) x.v[lane] = f(x.v[lane]);
  return x;
}

#define RNNFAST_COMPARE(sign)                                          \
  template <class S>                                                   \
  inline typename Vec<S>::Integers operator sign(Vec<S> a, Vec<S> b) { \
    return a.v sign b.v;                                               \
  }
RNNFAST_COMPARE(<)
RNNFAST_COMPARE(<=)
RNNFAST_COMPARE(>)
RNNFAST_COMPARE(>=)
RNNFAST_COMPARE(==)
RNNFAST_COMPARE(!=)
#undef RNNFAST_COMPARE

template <class Condition>
inline auto negated(Condition c) {
  return !c;
}

template <class S>
inline Vec<S> operator-(Vec<S> x) {
  return Vec<S>(-x.v);
}

// A NaN in either is kept.
template <class S>
inline Vec<S> maximum(Vec<S> a, Vec<S> b) {
  return select<S>(a.v > b.v, a, select<S>(b.v >= a.v, b, a + b));
}
template <class S>
inline Vec<S> minimum(Vec<S> a, Vec<S> b) {
  return select<S>(a.v < b.v, a, select<S>(b.v <= a.v, b, a + b));
}

template <class S>
inline Vec<S> sign(Vec<S> x) {
  const Vec<S> zero(S(0)), one(S(1));
  return select<S>(x.v > S(0), one, select<S>(x.v < S(0), zero - one, zero));
}

// e^x: 2^n · e^r as exp_of_negative has it, with 2^n in two factors, so that neither overflows.
template <class S>
inline Vec<S> exp(Vec<S> x) {
  using V = Vec<S>;
  using C = Constants<S>;
  using Integers = typename V::Integers;
  using I = typename V::I;
  constexpr S kHighest = sizeof(S) == 4 ? S(88.73) : S(709.79);
  const V held = select<S>(x.v > kHighest, V(kHighest), x);
  const V low = select<S>(held.v < 2 * C::kLowest, V(2 * C::kLowest), held);
  const V shifted = low * V(C::kLog2e) + V(C::kRound);
  const V n = shifted - V(C::kRound);
  const V r = (low - n * V(C::kLn2High)) - n * V(C::kLn2Low);
  V p(C::kTaylor[0]);
  for (int i = 1; i < int(sizeof(C::kTaylor) / sizeof(S)); ++i) p = p * r + V(C::kTaylor[i]);
  p = p * r + V(S(1));
  const V half_shifted = n * V(S(0.5)) + V(C::kRound);
  const V half = half_shifted - V(C::kRound), rest_shifted = (n - half) + V(C::kRound);
  const Integers first = ((Integers)half_shifted.v + I(C::kBias)) << C::kMantissa;
  const Integers second = ((Integers)rest_shifted.v + I(C::kBias)) << C::kMantissa;
  const V scaled = p * V((typename V::Native)first) * V((typename V::Native)second);
  const V infinite(S(1) / S(0));
  return select<S>(x.v > kHighest, infinite, select<S>(x.v != x.v, x, scaled));
}

#define RNNFAST_EACH(name, expression)                 \
  template <class S>                                   \
  inline Vec<S> name(Vec<S> x) {                       \
    return each(x, [](S v) { return S(expression); }); \
  }
RNNFAST_EACH(floor, std::floor(v))
RNNFAST_EACH(ceil, std::ceil(v))
RNNFAST_EACH(round, std::nearbyint(v))
RNNFAST_EACH(trunc, std::trunc(v))
RNNFAST_EACH(sqrt, std::sqrt(v))
RNNFAST_EACH(exp2, std::exp2(v))
RNNFAST_EACH(expm1, std::expm1(v))
RNNFAST_EACH(log, std::log(v))
RNNFAST_EACH(log2, std::log2(v))
RNNFAST_EACH(log10, std::log10(v))
RNNFAST_EACH(log1p, std::log1p(v))
RNNFAST_EACH(erf, std::erf(v))
RNNFAST_EACH(sin, std::sin(v))
RNNFAST_EACH(cos, std::cos(v))
RNNFAST_EACH(sinh, std::sinh(v))
RNNFAST_EACH(cosh, std::cosh(v))
RNNFAST_EACH(atan, std::atan(v))
#undef RNNFAST_EACH

template <class S>
inline Vec<S> rsqrt(Vec<S> x) {
  return Vec<S>(S(1)) / sqrt(x);
}

// ln(1 + e^x) without overflow.
template <class S>
inline Vec<S> softplus(Vec<S> x) {
  return maximum(x, Vec<S>(S(0))) + log1p(exp_of_negative(Vec<S>(S(0)) - abs(x)));
}

#define RNNFAST_EACH_PAIR(name)                                                                    \
  template <class S>                                                                               \
  inline Vec<S> name(Vec<S> x, Vec<S> y) {                                                         \
    for (int lane = 0; lane < Vec<S>::kLanes; ++lane) x.v[lane] = std::name(x.v[lane], y.v[lane]); \
    return x;                                                                                      \
  }
RNNFAST_EACH_PAIR(atan2)
RNNFAST_EACH_PAIR(fmod)
RNNFAST_EACH_PAIR(pow)
#undef RNNFAST_EACH_PAIR

template <class S>
inline Vec<S> where(typename Vec<S>::Integers condition, Vec<S> yes, Vec<S> no) {
  return select<S>(condition, yes, no);
}

template <class S>
inline Vec<S> where(bool condition, Vec<S> yes, Vec<S> no) {
  return condition ? yes : no;
}

namespace steps {

// Of scalars, beside those of vectors.
using functions::abs, functions::atan, functions::atan2, functions::ceil, functions::cos,
    functions::cosh, functions::erf, functions::exp, functions::exp2, functions::expm1,
    functions::floor, functions::fmod, functions::log, functions::log10, functions::log1p,
    functions::log2, functions::maximum, functions::minimum, functions::pow, functions::relu,
    functions::round, functions::rsqrt, functions::sigmoid, functions::sign, functions::sin,
    functions::sinh, functions::softplus, functions::sqrt, functions::tanh, functions::trunc,
    functions::where;

}  // namespace steps
}  // namespace rnnfast::cpu::RNNFAST_ISA
