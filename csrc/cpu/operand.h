// What the products of a set of instructions multiply: numbers one by one; or bfloat16 in pairs, by
// the processor's dot products of pairs, which add two steps of a sum at once to a float.
//
// RNNFAST_DOTS: bfloat16 is multiplied in pairs. Without the processor's instruction its numbers
// are computed by others, which is slow and for tests: of a pair first the second product is added
// to the sum, then the first, each rounded once to nearest even; subnormal numbers are 0, read and
// made.
#pragma once

#include "cpu/narrow.h"

#ifndef RNNFAST_DOTS
#define RNNFAST_DOTS 0
#endif

namespace rnnfast::cpu::RNNFAST_ISA {

using Pair = uint32_t;  // two steps as bfloat16, the first in the low half

// Rows of E are multiplied with packed weights of type Packed, kSteps steps at a time.
template <class E>
struct Operand {
  using Sum = E;
  using Packed = E;
  static constexpr int kSteps = 1;
};
template <>
struct Operand<BFloat16> {
  using Sum = float;
  using Packed = Pair;
  static constexpr int kSteps = 2;
};
template <class E>
using SumOf = typename Operand<E>::Sum;
template <class E>
using PackedOf = typename Operand<E>::Packed;

// What rows stored as X are multiplied as.
template <class X>
using OperandOf =
    std::conditional_t<RNNFAST_DOTS && std::is_same_v<X, BFloat16>, BFloat16, Wide<X>>;

// So many packed values do K steps take.
template <class E>
constexpr int64_t packed_steps(int64_t K) {
  return (K + Operand<E>::kSteps - 1) / Operand<E>::kSteps;
}

// One row's values for a step of the product, in each lane. `only`: of a pair, the first step.
template <class E>
inline typename Vec<E>::Native broadcast(const E* row, int64_t) {
  return Vec<E>(*row).v;
}
inline Vec<float>::Native broadcast(const BFloat16* row, int64_t steps) {
  Pair pair = row->bits;
  if (steps > 1) __builtin_memcpy(&pair, row, sizeof(pair));
  return (Vec<float>::Native)(Unsigned{} + pair);
}

inline Vec<float>::Native load_packed(const float* from) { return Vec<float>::load(from).v; }
inline Vec<double>::Native load_packed(const double* from) { return Vec<double>::load(from).v; }
inline Vec<float>::Native load_packed(const Pair* from) {
  typedef Pair Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(4), may_alias));
  return (Vec<float>::Native)(*reinterpret_cast<const Loose*>(from));
}

inline Vec<float>::Native without_subnormals(Vec<float>::Native x) {
  const Unsigned bits = (Unsigned)x, normal = (Unsigned)((bits & 0x7f800000u) != 0u);
  return (Vec<float>::Native)(bits & (normal | 0x80000000u));
}

// The numbers of the processor's instructions by others: the steps of pairs, and to + a·b.
inline Vec<float>::Native first_steps(Vec<float>::Native pairs) {
  return without_subnormals((Vec<float>::Native)((Unsigned)pairs << 16u));
}
inline Vec<float>::Native second_steps(Vec<float>::Native pairs) {
  return without_subnormals((Vec<float>::Native)((Unsigned)pairs & 0xffff0000u));
}
inline Vec<float>::Native rounded_once(Vec<float>::Native to, Vec<float>::Native a,
                                       Vec<float>::Native b) {
  Vec<float>::Native made = without_subnormals(to);
  for (int i = 0; i < kWords; ++i) made[i] = __builtin_fmaf(a[i], b[i], made[i]);
  return without_subnormals(made);
}
inline Vec<float>::Native emulated_dot(Vec<float>::Native sum, Vec<float>::Native x,
                                       Vec<float>::Native w) {
  sum = rounded_once(sum, second_steps(x), second_steps(w));
  return rounded_once(sum, first_steps(x), first_steps(w));
}

// Writes what is for products to read: in pairs a subnormal number is 0 to them, and the processor's
// own rounding, which makes it so, is a third of the instructions.
template <class E>
inline void write_factor(Vec<SumOf<E>> x, E* to, int64_t n) {
  if constexpr (Operand<E>::kSteps == 1) {
    x.store(to, n);
  } else {
#if defined(__AVX512BF16__) && RNNFAST_VECTOR_BYTES == 64
    store_words((Words)_mm512_cvtneps_pbh((__m512)x.v), to, n);
#else
    store_words(rounded(E{}, Vec<float>(without_subnormals(x.v))), to, n);
#endif
  }
}

// sum + x·w.
template <class E>
__attribute__((always_inline)) inline typename Vec<SumOf<E>>::Native multiplied_add(
    typename Vec<SumOf<E>>::Native sum, typename Vec<SumOf<E>>::Native x,
    typename Vec<SumOf<E>>::Native w) {
  if constexpr (std::is_same_v<E, BFloat16>) {
#if defined(__AVX512BF16__) && RNNFAST_VECTOR_BYTES == 64
    return (Vec<float>::Native)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    return emulated_dot(sum, x, w);
#endif
  } else {
    return sum + x * w;
  }
}

// Packs a vector of columns of two rows, n of which exist; the second may be null, which is zeros.
inline void pack_pairs(const BFloat16* first, const BFloat16* second, int64_t n, Pair* to) {
  Unsigned pairs{};
  if (n > 0) pairs = widened(load_words(first, n));
  if (n > 0 && second) pairs |= widened(load_words(second, n)) << 16u;
  as_floats(pairs).store(reinterpret_cast<float*>(to));
}

// Packs a vector of columns of a matrix's row, of which n exist; of pairs also those of the row
// `below` elements further on, if that is not 0.
template <class E, class X>
inline void pack_columns(const X* row, int64_t below, int64_t n, PackedOf<E>* to) {
  if constexpr (Operand<E>::kSteps == 1) {
    const Vec<E> values = n > 0 ? read(row, n) : Vec<E>(E(0));
    values.store(to);
  } else {
    pack_pairs(row, below == 0 ? nullptr : row + below, n, to);
  }
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
