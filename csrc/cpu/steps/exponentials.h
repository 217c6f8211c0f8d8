// exp, expm1, log and log1p of vectors: within 2 units of the last place, infinities and NaN as in
// std. And rounding to whole numbers, exact.
#pragma once

#include "cpu/vec.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// Constants of log: ln(1 + f) = f - f²/2 + f³·p(f) (/ q(f), which is monic), of Cephes (logf, log;
// S. L. Moshier). kSmallest: below, a number is scaled up by 2^kScale, being subnormal.
template <class S>
struct LogConstants;

template <>
struct LogConstants<float> {
  static constexpr float kP[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                 -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                 2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  static constexpr float kSmallest = 1.17549435e-38f, kUp = 16777216.f;
  static constexpr int kScale = 24;
  static Vec<float> bent(Vec<float> f) {
    Vec<float> p(kP[0]);
    for (int i = 1; i < 9; ++i) p = p * f + Vec<float>(kP[i]);
    return p;
  }
};

template <>
struct LogConstants<double> {
  static constexpr double kP[] = {1.01875663804580931796e-4, 4.97494994976747001425e-1,
                                  4.70579119878881725854,    1.44989225341610930846e1,
                                  1.79368678507819816313e1,  7.70838733755885391666};
  static constexpr double kQ[] = {1.12873587189167450590e1, 4.52279145837532221105e1,
                                  8.29875266912776603211e1, 7.11544750618563894466e1,
                                  2.31251620126765340583e1};
  static constexpr double kSmallest = 2.2250738585072014e-308, kUp = 18014398509481984.;
  static constexpr int kScale = 54;
  static Vec<double> bent(Vec<double> f) {
    Vec<double> p(kP[0]), q = f + Vec<double>(kQ[0]);
    for (int i = 1; i < 6; ++i) p = p * f + Vec<double>(kP[i]);
    for (int i = 1; i < 5; ++i) q = q * f + Vec<double>(kQ[i]);
    return p / q;
  }
};

template <class S>
inline Vec<S> log(Vec<S> x) {
  using V = Vec<S>;
  using C = LogConstants<S>;
  using Integers = typename V::Integers;
  using Native = typename V::Native;
  using I = typename V::I;
  constexpr int kMantissa = Constants<S>::kMantissa;
  const I bias = Constants<S>::kBias;
  const Integers tiny = x.v < C::kSmallest;
  const Integers bits = (Integers)select<S>(tiny, x * V(C::kUp), x).v;
  const Integers fraction = bits & ((I(1) << kMantissa) - 1);
  const V mantissa((Native)(fraction | (bias << kMantissa)));  // in [1, 2)
  const Integers upper = mantissa.v > S(1.41421356237309504880);
  const Integers ones = Integers{} + I(1);
  const Integers exponent = ((bits >> kMantissa) & I(2 * bias + 1)) - bias +
                            (upper ? ones : Integers{}) - (tiny ? ones * I(C::kScale) : Integers{});
  const V e(__builtin_convertvector(exponent, Native));
  const V f = select<S>(upper, mantissa * V(S(0.5)), mantissa) - V(S(1));
  const V square = f * f;
  V y = f * square * C::bent(f) + e * V(Constants<S>::kLn2Low);
  y = y - V(S(0.5)) * square;
  const V found = (f + y) + e * V(Constants<S>::kLn2High);
  const V infinite(S(1) / S(0));
  const V at_zero = select<S>(x.v == S(0), V(S(0)) - infinite, V(S(0) * (S(1) / S(0))));
  const V positive = select<S>(x.v == infinite.v, infinite, found);
  return select<S>(x.v > S(0), positive, at_zero);
}

// ln u, u = 1 + x as it was rounded, and what the rounding took away, divided by u.
template <class S>
inline Vec<S> log1p(Vec<S> x) {
  using V = Vec<S>;
  const V u = V(S(1)) + x;
  const V lost = (x - (u - V(S(1)))) / u;
  const auto plain = (u.v == S(0)) | (u.v == S(1) / S(0));
  const V found = log(u) + select<S>(plain, V(S(0)), lost);
  return select<S>(x.v == S(0), x, found);  // keeps the sign of 0
}

// The nearest whole number, the even one of two: adding 2^kMantissa leaves no place for more.
template <class S>
inline Vec<S> round(Vec<S> x) {
  using V = Vec<S>;
  const V whole(S(typename V::I(1) << Constants<S>::kMantissa)), size = abs(x);
  const V found = with_sign((size + whole) - whole, x);
  return select<S>(size.v < whole.v, found, x);
}

template <class S>
inline Vec<S> floor(Vec<S> x) {
  const Vec<S> near = round(x);
  return select<S>(near.v > x.v, near - Vec<S>(S(1)), near);
}

template <class S>
inline Vec<S> ceil(Vec<S> x) {
  return Vec<S>(-floor(Vec<S>(-x.v)).v);
}

template <class S>
inline Vec<S> trunc(Vec<S> x) {
  return with_sign(floor(abs(x)), x);
}

// The parts of an exponential: e^x = 2^n · (1 + bent), 2^n = first · second, neither of which
// overflows where x is at most kHighest.
template <class S>
struct Power {
  using V = Vec<S>;
  using C = Constants<S>;
  using Integers = typename V::Integers;
  static constexpr S kHighest = sizeof(S) == 4 ? S(88.73) : S(709.79);

  V bent, first, second, down;  // down: 1 / second

  explicit Power(V x) {
    const V high = select<S>(x.v > kHighest, V(kHighest), x);
    const V low = select<S>(high.v < 2 * C::kLowest, V(2 * C::kLowest), high);
    const V n = (low * V(C::kLog2e) + V(C::kRound)) - V(C::kRound);
    const V r = (low - n * V(C::kLn2High)) - n * V(C::kLn2Low);
    V p(C::kTaylor[0]);
    for (int i = 1; i < int(sizeof(C::kTaylor) / sizeof(S)) - 1; ++i) p = p * r + V(C::kTaylor[i]);
    bent = r + (r * r) * p;  // kTaylor's last is 1
    const V half = (n * V(S(0.5)) + V(C::kRound)) - V(C::kRound);
    first = two_to(half);
    second = two_to(n - half);
    down = two_to(half - n);
  }

 private:
  static V two_to(V n) {  // the low bits of the sum hold n
    using I = typename V::I;
    const Integers bits = ((Integers)(n + V(C::kRound)).v + I(C::kBias)) << C::kMantissa;
    return V((typename V::Native)bits);
  }
};

template <class S>
inline Vec<S> exp(Vec<S> x) {
  using V = Vec<S>;
  const Power<S> power(x);
  const V found = (power.bent + V(S(1))) * power.first * power.second;
  return select<S>(x.v > Power<S>::kHighest, V(S(1) / S(0)), select<S>(x.v != x.v, x, found));
}

template <class S>
inline Vec<S> expm1(Vec<S> x) {
  using V = Vec<S>;
  const Power<S> power(x);
  const V found = (power.bent * power.first + (power.first - power.down)) * power.second;
  const V bounded = select<S>(x.v > Power<S>::kHighest, V(S(1) / S(0)), found);
  return select<S>((x.v != x.v) | (x.v == S(0)), x, bounded);
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
