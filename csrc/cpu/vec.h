// One SIMD register as a class, on the compiler's own vector types: + - * / and comparisons are the
// machine's, so one source serves AVX-512, AVX2 and any other target. Everything here lives in a
// namespace named after the instruction set (RNNFAST_ISA), so that no function compiled for one is
// ever linked in place of another's.
#pragma once

#include <cstdint>

#ifndef RNNFAST_ISA
#error "define RNNFAST_ISA and RNNFAST_VECTOR_BYTES before this header"
#endif

namespace rnnfast::cpu::RNNFAST_ISA {

// The compiler's vector types, spelled out for each scalar: GCC drops the attribute from a typedef
// of a template's parameter.
template <class S>
struct NativeOf;

#define RNNFAST_NATIVE(S, Integer)                                                                 \
  template <>                                                                                      \
  struct NativeOf<S> {                                                                             \
    using I = Integer;                                                                             \
    typedef S Native __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));                           \
    typedef Integer Integers __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));                   \
    typedef S Unaligned                                                                            \
        __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(sizeof(S)), may_alias));         \
    typedef int16_t Shorts                                                                         \
        __attribute__((vector_size(RNNFAST_VECTOR_BYTES / sizeof(S) * 2), aligned(2), may_alias)); \
  };
RNNFAST_NATIVE(float, int32_t)
RNNFAST_NATIVE(double, int64_t)
#undef RNNFAST_NATIVE

// The first n lanes of a vector, by the machine's masks, so that lanes beyond are not touched: where
// there are none, or a compiler does not know these names of them, a loop over the lanes, which takes
// several times as long.
#if defined(__clang__)
#if !__has_builtin(__builtin_ia32_loadups512_mask) || !__has_builtin(__builtin_ia32_maskloadps256)
#define RNNFAST_NO_MASKS 1
#endif
#endif
#if defined(__AVX512F__) && RNNFAST_VECTOR_BYTES == 64 && !defined(RNNFAST_NO_MASKS)
#define RNNFAST_MASKED(S, bits, load512, store512)                                   \
  inline NativeOf<S>::Native load_first(const S* from, int64_t n) {                  \
    return load512(from, NativeOf<S>::Native{}, bits(n <= 0 ? 0u : (1u << n) - 1u)); \
  }                                                                                  \
  inline void store_first(NativeOf<S>::Native v, S* to, int64_t n) {                 \
    store512(to, v, bits(n <= 0 ? 0u : (1u << n) - 1u));                             \
  }
RNNFAST_MASKED(float, uint16_t, __builtin_ia32_loadups512_mask, __builtin_ia32_storeups512_mask)
RNNFAST_MASKED(double, uint8_t, __builtin_ia32_loadupd512_mask, __builtin_ia32_storeupd512_mask)
#undef RNNFAST_MASKED
#elif defined(__AVX2__) && RNNFAST_VECTOR_BYTES == 32 && !defined(RNNFAST_NO_MASKS)
inline NativeOf<float>::Integers lanes_below(const float*, int64_t n) {
  constexpr NativeOf<float>::Integers kLane{0, 1, 2, 3, 4, 5, 6, 7};
  return kLane < int32_t(n);
}
inline NativeOf<double>::Integers lanes_below(const double*, int64_t n) {
  constexpr NativeOf<double>::Integers kLane{0, 1, 2, 3};
  return kLane < n;
}
#define RNNFAST_MASKED(S, Mask, load256, store256)                                     \
  inline NativeOf<S>::Native load_first(const S* from, int64_t n) {                    \
    return load256(reinterpret_cast<const NativeOf<S>::Native*>(from),                 \
                   (Mask)lanes_below(from, n));                                        \
  }                                                                                    \
  inline void store_first(NativeOf<S>::Native v, S* to, int64_t n) {                   \
    store256(reinterpret_cast<NativeOf<S>::Native*>(to), (Mask)lanes_below(to, n), v); \
  }
typedef int MaskInts __attribute__((vector_size(32)));
typedef long long MaskLongs __attribute__((vector_size(32)));
RNNFAST_MASKED(float, MaskInts, __builtin_ia32_maskloadps256, __builtin_ia32_maskstoreps256)
RNNFAST_MASKED(double, MaskLongs, __builtin_ia32_maskloadpd256, __builtin_ia32_maskstorepd256)
#undef RNNFAST_MASKED
#else
template <class S>
inline typename NativeOf<S>::Native load_first(const S* from, int64_t n) {
  typename NativeOf<S>::Native part{};
  for (int64_t i = 0; i < n; ++i) part[i] = from[i];
  return part;
}
template <class S>
inline void store_first(typename NativeOf<S>::Native v, S* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = v[i];
}
#endif

template <class Scalar>
struct Vec {
  using S = Scalar;
  using I = typename NativeOf<S>::I;
  using Native = typename NativeOf<S>::Native;
  using Integers = typename NativeOf<S>::Integers;
  using Unaligned = typename NativeOf<S>::Unaligned;
  using Shorts = typename NativeOf<S>::Shorts;
  static constexpr int kLanes = RNNFAST_VECTOR_BYTES / static_cast<int>(sizeof(S));

  static constexpr int kFixedOne = 32767, kFixedNaN = -32768;

  Native v;

  Vec() = default;
  Vec(Native native) : v(native) {}
  Vec(S x) : v(x - Native{}) {}
  explicit Vec(int x) : Vec(static_cast<S>(x)) {}

  static Vec load(const S* from) { return Vec(Native(*reinterpret_cast<const Unaligned*>(from))); }
  void store(S* to) const { *reinterpret_cast<Unaligned*>(to) = v; }

  // The first n lanes; the others are 0 or left alone.
  static Vec load(const S* from, int64_t n) {
    return n >= kLanes ? load(from) : Vec(load_first(from, n));
  }
  void store(S* to, int64_t n) const {
    if (n >= kLanes) return store(to);
    store_first(v, to, n);
  }

  // Values in [-1, 1], and NaN, as 16-bit fixed point: off by 1.6e-5 at most, exact at -1, 0 and 1.
  // The rounding is done on integers: a sum of floats could be fused with the product or not,
  // and results would depend on what the compiler made of one loop or another.
  void store_fixed(int16_t* to, int64_t n) const {
    const Integers is_nan = v != v;
    const Native bounded = is_nan ? Native{} : v;
    const Integers twice = __builtin_convertvector(bounded * S(2 * kFixedOne), Integers);
    const Integers rounded = (twice + I(1) + (twice >> (sizeof(S) * 8 - 1))) >> I(1);
    const Integers numbers = is_nan ? Integers{} + I(kFixedNaN) : rounded;
    const Shorts found = __builtin_convertvector(numbers, Shorts);
    if (n >= kLanes) {
      *reinterpret_cast<Shorts*>(to) = found;
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = found[i];
    }
  }
  static Vec load_fixed(const int16_t* from, int64_t n) {
    Shorts part{};
    if (n >= kLanes) {
      part = *reinterpret_cast<const Shorts*>(from);
    } else {
      for (int64_t i = 0; i < n; ++i) part[i] = from[i];
    }
    const Integers numbers = __builtin_convertvector(part, Integers);
    const Native values = __builtin_convertvector(numbers, Native) * (S(1) / S(kFixedOne));
    return Vec(Native(numbers == I(kFixedNaN) ? Native{} + S(__builtin_nan("")) : values));
  }

  friend Vec operator+(Vec a, Vec b) { return Vec(a.v + b.v); }
  friend Vec operator-(Vec a, Vec b) { return Vec(a.v - b.v); }
  friend Vec operator*(Vec a, Vec b) { return Vec(a.v * b.v); }
  friend Vec operator/(Vec a, Vec b) { return Vec(a.v / b.v); }
};

// Constants of exp and tanh. kTaylor: 1/n! from the highest power down to 1/1! (the last 1 is
// apart); kRound added and subtracted rounds to an integer; ln 2 in two parts, the first short
// enough for n·kLn2High to be exact.
template <class S>
struct Constants;

template <>
struct Constants<float> {
  static constexpr float kTaylor[] = {1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24,
                                      1.f / 6,    1.f / 2,   1.f};
  static constexpr float kLog2e = 1.44269504088896341f, kRound = 12582912.f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr float kLowest = -87.34f;  // below, exp is 0 (a subnormal is flushed)
  static constexpr int kMantissa = 23, kBias = 127;
  // tanh x = x + x·z·p(z), z = x², for |x| < kSmall: the minimax polynomial of Cephes' tanhf
  static constexpr float kSmall = 0.625f;
  static constexpr float kTanh[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                    1.33314422036e-1f, -3.33332819422e-1f};
};

template <>
struct Constants<double> {
  static constexpr double kTaylor[] = {1. / 6227020800,
                                       1. / 479001600,
                                       1. / 39916800,
                                       1. / 3628800,
                                       1. / 362880,
                                       1. / 40320,
                                       1. / 5040,
                                       1. / 720,
                                       1. / 120,
                                       1. / 24,
                                       1. / 6,
                                       1. / 2,
                                       1.};
  static constexpr double kLog2e = 1.44269504088896340736, kRound = 6755399441055744.;
  static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kLowest = -708.4;
  static constexpr int kMantissa = 52, kBias = 1023;
  // tanh x = x + x·z·p(z)/q(z): the rational function of Cephes' tanh; q is monic
  static constexpr double kSmall = 0.625;
  static constexpr double kTanh[] = {-9.64399179425052238628e-1, -9.92877231001918586564e1,
                                     -1.61468768441708447952e3};
  static constexpr double kTanhQ[] = {1.12811678491632931402e2, 2.23548839060100448583e3,
                                      4.84406305325125486048e3};
};

// Inlined by force: of a file with many kernels the compiler would call some of these, and what is
// in registers would go to memory for each.
#define RNNFAST_FORCED __attribute__((always_inline)) inline

template <class S>
RNNFAST_FORCED Vec<S> select(typename Vec<S>::Integers where, Vec<S> yes, Vec<S> no) {
  return Vec<S>(where ? yes.v : no.v);
}

template <class S>
RNNFAST_FORCED Vec<S> abs(Vec<S> x) {
  using I = typename Vec<S>::I;
  const I mask = static_cast<I>(~(I(1) << (sizeof(S) * 8 - 1)));
  using Integers = typename Vec<S>::Integers;
  return Vec<S>((typename Vec<S>::Native)((Integers)x.v & mask));
}

// x, which is not negative, with the sign of `sign`.
template <class S>
RNNFAST_FORCED Vec<S> with_sign(Vec<S> x, Vec<S> sign) {
  using I = typename Vec<S>::I;
  using Integers = typename Vec<S>::Integers;
  const I mask = static_cast<I>(I(1) << (sizeof(S) * 8 - 1));
  return Vec<S>((typename Vec<S>::Native)((Integers)x.v | ((Integers)sign.v & mask)));
}

// Inlined by force, like those below: out of line, a step's activations would wait for one another.
//
// e^x for x <= 0 (and NaN): 2^n · e^r, |r| <= ln 2 / 2, by Taylor's polynomial.
template <class S>
RNNFAST_FORCED Vec<S> exp_of_negative(Vec<S> x) {
  using V = Vec<S>;
  using C = Constants<S>;
  const V shifted = x * V(C::kLog2e) + V(C::kRound);
  const V n = shifted - V(C::kRound);
  const V r = (x - n * V(C::kLn2High)) - n * V(C::kLn2Low);
  V p(C::kTaylor[0]);
  for (int i = 1; i < int(sizeof(C::kTaylor) / sizeof(S)); ++i) p = p * r + V(C::kTaylor[i]);
  p = p * r + V(S(1));
  // the low bits of `shifted` hold n: shifted into the exponent they are 2^n
  using Integers = typename V::Integers;
  using I = typename V::I;
  const Integers bits = ((Integers)shifted.v + I(C::kBias)) << C::kMantissa;
  const V scaled = p * V((typename V::Native)bits);
  return select<S>(x.v < C::kLowest, V(S(0)), scaled);
}

// The formulas of csrc/cells/math.h: no overflow, exact saturation, a NaN is kept.
template <class S>
RNNFAST_FORCED Vec<S> sigmoid(Vec<S> x) {
  using V = Vec<S>;
  const V e = exp_of_negative(V(S(0)) - abs(x));
  return select<S>(x.v < S(0), e, V(S(1))) / (V(S(1)) + e);
}

RNNFAST_FORCED Vec<float> tanh_small(Vec<float> x) {
  using C = Constants<float>;
  const Vec<float> z = x * x;
  Vec<float> p(C::kTanh[0]);
  for (int i = 1; i < 5; ++i) p = p * z + Vec<float>(C::kTanh[i]);
  return x + x * z * p;
}

RNNFAST_FORCED Vec<double> tanh_small(Vec<double> x) {
  using C = Constants<double>;
  const Vec<double> z = x * x;
  Vec<double> p(C::kTanh[0]);
  for (int i = 1; i < 3; ++i) p = p * z + Vec<double>(C::kTanh[i]);
  Vec<double> q = z + Vec<double>(C::kTanhQ[0]);
  for (int i = 1; i < 3; ++i) q = q * z + Vec<double>(C::kTanhQ[i]);
  return x + x * z * p / q;
}

template <class S>
RNNFAST_FORCED Vec<S> tanh(Vec<S> x) {
  using V = Vec<S>;
  const V size = abs(x);
  const V e = exp_of_negative(V(S(-2)) * size);
  const V large = (V(S(1)) - e) / (V(S(1)) + e);
  return with_sign(select<S>(size.v < Constants<S>::kSmall, tanh_small(size), large), x);
}

template <class S>
RNNFAST_FORCED Vec<S> relu(Vec<S> x) {
  return select<S>(x.v < S(0), Vec<S>(S(0)), x);
}

template <class S>
RNNFAST_FORCED Vec<S> relu_backward(Vec<S> dy, Vec<S> y) {
  return select<S>(y.v <= S(0), Vec<S>(S(0)), dy);
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
