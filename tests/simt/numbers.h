// The 16-bit floats in software: round to nearest even, NaN kept.
#pragma once

#include <cstdint>
#include <cstring>

namespace simt {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float bf16_to_float(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Exponents are 112 further in a float; the product moves them, subnormal numbers too.
inline float f16_to_float(uint16_t bits) {
  const uint32_t magnitude = (bits & 0x7FFFu) << 13;
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  return float_of(((bits & 0x7C00u) == 0x7C00u ? magnitude | 0x7F800000u : finite) | sign);
}

inline uint16_t float_to_f16(float value) {
  const uint32_t bits = bits_of(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u)
    return static_cast<uint16_t>(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and beyond
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24, as which the sum rounds it
    const uint32_t code = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    return static_cast<uint16_t>(sign | code);
  }
  const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

// tf32: a float of 10 mantissa bits. Halves are rounded away from 0, as cvt.rna does.
inline uint32_t float_to_tf32(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return 0x7FFFE000u;
  if ((bits & 0x7F800000u) == 0x7F800000u) return bits;
  return (bits + 0x1000u) & 0xFFFFE000u;
}

}  // namespace simt
