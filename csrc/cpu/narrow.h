// Vectors of numbers that are stored in 16 bits, read as float and rounded to nearest even when
// written, as torch rounds them; and the same two functions for numbers that are stored as they are
// computed.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/storage.h"
#include "cpu/vec.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// So many words of 16 bits as a vector has floats; in memory and in registers.
typedef uint16_t Words __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 2)));
typedef uint16_t LooseWords
    __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t Unsigned __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));

constexpr int kWords = Vec<float>::kLanes;

// Up to four of them. Words that are written one by one are not yet in memory when they are read as
// a vector.
inline uint64_t few_words(const uint16_t* from, int64_t n) {
  uint64_t found = 0;
  if (n >= 4) {
    __builtin_memcpy(&found, from, 8);
  } else if (n >= 2) {
    __builtin_memcpy(&found, from, 4);
    if (n == 3) found |= uint64_t(from[2]) << 32;
  } else if (n == 1) {
    found = from[0];
  }
  return found;
}

// The first n of them; the others are 0 or left alone.
inline Words load_words(const void* from, int64_t n) {
  if (n >= kWords) return *static_cast<const LooseWords*>(from);
#if defined(__AVX512BW__) && defined(__AVX512VL__) && RNNFAST_VECTOR_BYTES == 64
  return (Words)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1), from);
#else
  typedef uint64_t Fours __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 2)));
  Fours fours{};
  for (int i = 0; i < kWords / 4; ++i)
    fours[i] = few_words(static_cast<const uint16_t*>(from) + 4 * i, n - 4 * i);
  return (Words)fours;
#endif
}
inline void store_words(Words words, void* to, int64_t n) {
  if (n >= kWords) {
    *static_cast<LooseWords*>(to) = words;
    return;
  }
#if defined(__AVX512BW__) && defined(__AVX512VL__) && RNNFAST_VECTOR_BYTES == 64
  const auto mask = static_cast<__mmask16>((1u << (n < 0 ? 0 : n)) - 1);
  _mm256_mask_storeu_epi16(to, mask, (__m256i)words);
#else
  for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = words[i];
#endif
}

// With masks of all lanes: the plain ones begin with a value that GCC warns of.
#if defined(__x86_64__) && RNNFAST_VECTOR_BYTES == 64
inline Unsigned widened(Words words) {
  return (Unsigned)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)words);
}
inline Words narrowed(Unsigned v) { return (Words)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v); }
#elif defined(__AVX2__) && RNNFAST_VECTOR_BYTES == 32
inline Unsigned widened(Words words) { return (Unsigned)_mm256_cvtepu16_epi32((__m128i)words); }
inline Words narrowed(Unsigned v) {
  const __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);  // in each half by itself
  return (Words)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#else
inline Unsigned widened(Words words) { return __builtin_convertvector(words, Unsigned); }
inline Words narrowed(Unsigned v) { return __builtin_convertvector(v, Words); }
#endif

inline Vec<float> as_floats(Unsigned bits) { return Vec<float>((Vec<float>::Native)bits); }

inline Vec<float> wide(BFloat16, Words words) { return as_floats(widened(words) << 16u); }

inline Words rounded(BFloat16, Vec<float> x) {
  const Unsigned bits = (Unsigned)x.v;
  const Unsigned even = bits + 0x7fffu + ((bits >> 16u) & 1u);
  const Unsigned nan = (Unsigned)(x.v != x.v);
  return narrowed(((even & ~nan) | (nan & 0x7fc00000u)) >> 16u);
}

#if defined(__AVX512F__) && RNNFAST_VECTOR_BYTES == 64
inline Vec<float> wide(Half, Words words) {
  return Vec<float>((Vec<float>::Native)_mm512_maskz_cvtph_ps(0xffff, (__m256i)words));
}
inline Words rounded(Half, Vec<float> x) {
  return (Words)_mm512_maskz_cvtps_ph(0xffff, (__m512)x.v,
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__F16C__) && RNNFAST_VECTOR_BYTES == 32
inline Vec<float> wide(Half, Words words) {
  return Vec<float>((Vec<float>::Native)_mm256_cvtph_ps((__m128i)words));
}
inline Words rounded(Half, Vec<float> x) {
  return (Words)_mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
// The exponent is moved by a product with 2^112, which also makes subnormal numbers normal ones.
inline Vec<float> wide(Half, Words words) {
  const Unsigned all = widened(words), sign = (all & 0x8000u) << 16u;
  const Vec<float> moved = as_floats((all & 0x7fffu) << 13u) * Vec<float>(0x1p112f);
  const Unsigned special = (Unsigned)(moved.v >= 65536.f) & 0x7f800000u;  // infinities and NaN
  return as_floats((Unsigned)moved.v | special | sign);
}
inline Words rounded(Half, Vec<float> x) {
  const Unsigned all = (Unsigned)x.v, sign = all & 0x80000000u, size = all ^ sign;
  const Vec<float> value = as_floats(size);
  const Unsigned normal = (size + 0xc8000fffu + ((size >> 13u) & 1u)) >> 13u;
  // below the smallest normal number the sum with a half leaves the bits that count
  const Unsigned small = (Unsigned)(value + Vec<float>(0.5f)).v - 0x3f000000u;
  const Unsigned is_small = (Unsigned)(value.v < 0x1p-14f);
  const Unsigned is_large = (Unsigned)(value.v >= 65536.f), nan = (Unsigned)(x.v != x.v);
  Unsigned found = (is_small & small) | (~is_small & normal);
  found = (is_large & 0x7c00u) | (~is_large & found);
  found = (nan & 0x7e00u) | (~nan & found);
  return narrowed(found | (sign >> 16u));
}
#endif

// The first n values at `from`, the others 0; and of the first n lanes of x, where they go.
template <class X>
inline Vec<Wide<X>> read(const X* from, int64_t n = 1 << 20) {
  if constexpr (kNarrow<X>) {
    return wide(X{}, load_words(from, n));
  } else {
    return Vec<X>::load(from, n);
  }
}
template <class X>
inline void write(Vec<Wide<X>> x, X* to, int64_t n = 1 << 20) {
  if constexpr (kNarrow<X>) {
    store_words(rounded(X{}, x), to, n);
  } else {
    x.store(to, n);
  }
}

// n values, in another format or the same; the last vector ends with the last of them, which does
// some twice.
template <class From, class To>
inline void convert(To* to, const From* from, int64_t n) {
  constexpr int64_t L = Vec<Wide<To>>::kLanes;
  for (int64_t i = 0; i < n; i += L) {
    const int64_t at = i + L <= n || n < L ? i : n - L;
    write(read(from + at, n - at), to + at, n - at);
  }
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
