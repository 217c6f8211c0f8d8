// 16-bit storage to fp32 and back, for loops that the compiler turns into SIMD: no branches, no
// library, integers only where the instruction sets lack a conversion.
#pragma once

#include <cstdint>

#ifndef RNNFAST_ISA
#error "define RNNFAST_ISA before this header"
#endif

namespace rnnfast::cpu::RNNFAST_ISA {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bf16 x) { return float_of(uint32_t(x.bits) << 16); }

// fp16: 5 bits of exponent with bias 15, 10 of mantissa.
inline float widen(F16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  const uint32_t normal = (rest << 13) + ((127u - 15u) << 23);
  const uint32_t special = (rest << 13) + ((255u - 31u) << 23);
  // rest · 2^-24: put under the mantissa of 0.5, whose last bit is 2^-24
  const uint32_t small = bits_of(float_of(0x3f000000u + rest) - 0.5f);
  const uint32_t bits = rest < 0x0400u ? small : rest < 0x7c00u ? normal : special;
  return float_of(bits | sign);
}

// Rounded to nearest, ties to even.
inline void narrow(float x, float& to) { to = x; }
inline void narrow(double x, double& to) { to = x; }

inline void narrow(float x, Bf16& to) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

inline void narrow(float x, F16& to) {
  const uint32_t all = bits_of(x), sign = (all >> 16) & 0x8000u, bits = all & 0x7fffffffu;
  const uint32_t shifted = bits - ((127u - 15u) << 23);
  const uint32_t normal = (shifted + 0x0fffu + ((shifted >> 13) & 1u)) >> 13;
  // below 2^-14: the sum with 0.5 rounds to multiples of 2^-24
  const uint32_t small = bits_of(float_of(bits) + 0.5f) - 0x3f000000u;
  const uint32_t large = normal > 0x7c00u ? 0x7c00u : normal;
  const uint32_t finite = bits < 0x38800000u ? small : bits >= 0x47800000u ? 0x7c00u : large;
  to.bits = static_cast<uint16_t>(sign | (bits > 0x7f800000u ? 0x7e00u : finite));
}

// What a dtype is computed in.
template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

}  // namespace rnnfast::cpu::RNNFAST_ISA
