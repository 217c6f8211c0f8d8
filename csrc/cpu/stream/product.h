// The products of a step with weights that stay packed: a few rows of values times a matrix whose
// panels lie as those of cpu/panel.h, in float32, bfloat16 or int8.
//
// Each output is one sum over k in order, whatever the number of rows and threads. The input's
// product is summed in blocks of k, and its bias added after the first, as cpu/gemm.h does it: in
// float32 and float64 both have the bits of the layers' kernels.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/gemm.h"
#include "cpu/stream/kernels.h"
#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA::stream {

using rnnfast::cpu::stream::Storage;

// Two steps of k as bfloat16, the first in the low half.
using Pair = uint32_t;

// A packed weight of type W as a vector of S; `step` of the W::kSteps that a W has.
template <class W>
constexpr int kSteps = 1;
template <>
inline constexpr int kSteps<Pair> = 2;

using Integers = typename NativeOf<float>::Integers;

#if defined(__x86_64__) && RNNFAST_VECTOR_BYTES == 32
// By a shuffle: a shift has fewer units to run on, beside the multiply-adds.
inline Integers low_half_up(Integers v) {
  const auto bytes = _mm256_set_epi8(13, 12, -1, -1, 9, 8, -1, -1, 5, 4, -1, -1, 1, 0, -1, -1, 13,
                                     12, -1, -1, 9, 8, -1, -1, 5, 4, -1, -1, 1, 0, -1, -1);
  return (Integers)_mm256_shuffle_epi8((__m256i)v, bytes);
}
#else
inline Integers low_half_up(Integers v) { return v << 16; }
#endif

// So many int8 as there are lanes. By hand where the compiler would do it lane by lane.
#if defined(__x86_64__) && RNNFAST_VECTOR_BYTES == 64
inline Integers widened(const int8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Integers)_mm512_maskz_cvtepi8_epi32(0xffff, bytes);
}
#elif defined(__x86_64__) && RNNFAST_VECTOR_BYTES == 32
inline Integers widened(const int8_t* from) {
  return (Integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
#else
inline Integers widened(const int8_t* from) { return Integers{from[0], from[1], from[2], from[3]}; }
#endif

template <class S>
inline Vec<S> unpacked(const S* from, int) {
  return Vec<S>::load(from);
}

template <class S>
inline Vec<S> unpacked(const Pair* from, int step) {
  typedef int32_t Unaligned
      __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(4), may_alias));
  const Integers both = (Integers)(*reinterpret_cast<const Unaligned*>(from));
  const Integers bits = step == 0 ? low_half_up(both) : both & int32_t(0xffff0000);
  return Vec<S>((typename Vec<S>::Native)bits);
}

template <class S>
inline Vec<S> unpacked(const int8_t* from, int) {
  return Vec<S>(__builtin_convertvector(widened(from), typename Vec<S>::Native));
}

// A packed matrix: `outputs` of `values` rows each (a unit's gates), times K values.
template <class S>
struct Matrix {
  int64_t outputs = 0, K = 0;
  int values = 1;
  int units = 1, width = 0;        // of a panel: vectors of outputs, columns
  int64_t count = 0, columns = 0;  // of panels; of all of them
  const void* panels = nullptr;
  const S* bias = nullptr;   // by column, like the sums; 0 where there is none
  const S* scale = nullptr;  // by column, kInt8 only
};

constexpr int64_t bytes_of(Storage storage, int64_t columns, int64_t K) {
  switch (storage) {
    case Storage::kFloat32:
      return columns * K * 4;
    case Storage::kFloat64:
      return columns * K * 8;
    case Storage::kBFloat16:
      return columns * divide_up(K, 2) * 4;
    case Storage::kInt8:
      return columns * K;
  }
  return 0;
}

// Takes a matrix's memory.
template <class S>
Matrix<S> take_matrix(Arena& arena, Storage storage, int64_t outputs, int values, int64_t K) {
  Matrix<S> m;
  m.outputs = outputs, m.K = K, m.values = values;
  m.units = values == 1 ? kWide : values == 2 ? 2 : 1;
  m.width = m.units * values * Vec<S>::kLanes;
  m.count = divide_up(outputs, m.units * Vec<S>::kLanes);
  m.columns = m.count * m.width;
  m.panels = arena.take<char>(bytes_of(storage, m.columns, K));
  m.bias = arena.take<S>(m.columns);
  if (storage == Storage::kInt8) m.scale = arena.take<S>(m.columns);
  return m;
}

// Rows of values, evenly spaced.
template <class S>
struct Rows {
  const S* base;
  int64_t stride, n;
};

// K steps of NQ panels and MR rows, added to the sums.
template <int NQ, int MR, int NV, class W, class S>
__attribute__((always_inline)) inline void add_steps(const S* const (&rows)[MR], int64_t k,
                                                     int64_t K, const W* (&w)[NQ],
                                                     Vec<S> (&sums)[NQ][MR][NV]) {
  using V = Vec<S>;
  constexpr int L = V::kLanes;
  typename V::Native total[NQ][MR][NV];
#pragma GCC unroll 4
  for (int q = 0; q < NQ; ++q) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) total[q][r][j] = sums[q][r][j].v;
    }
  }
  const auto add = [&](int64_t at, int steps) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int s = 0; s < steps; ++s) {
      V x[MR];
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) x[r] = V(rows[r][at + s]);
#pragma GCC unroll 4
      for (int q = 0; q < NQ; ++q) {
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          const V weight = unpacked<S>(w[q] + j * L, s);
#pragma GCC unroll 16
          for (int r = 0; r < MR; ++r) total[q][r][j] += x[r].v * weight.v;
        }
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < NQ; ++q) w[q] += NV * L;
  };
  const int64_t end = k + K;
  for (; k + kSteps<W> <= end; k += kSteps<W>) add(k, kSteps<W>);
  if (kSteps<W> > 1 && k < end) add(k, 1);
#pragma GCC unroll 4
  for (int q = 0; q < NQ; ++q) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sums[q][r][j].v = total[q][r][j];
    }
  }
}

// NQ panels from q on times rows [i, i + MR), to `to`, rows of m.columns each. kInput: in blocks.
template <bool kInput, int NQ, int MR, int NV, class W, class S>
__attribute__((noinline)) void tile(const Matrix<S>& m, int64_t q, const Rows<S>& in, int64_t i,
                                    S* to) {
  using V = Vec<S>;
  constexpr int L = V::kLanes;
  constexpr int64_t kWidth = NV * L;
  constexpr bool kScaled = sizeof(W) == 1;
  const int64_t panel = divide_up(m.K, kSteps<W>) * kWidth, columns = m.columns;
  const S* rows[MR];
  const W* w[NQ];
  for (int r = 0; r < MR; ++r) rows[r] = in.base + (i + r) * in.stride;
  for (int p = 0; p < NQ; ++p) w[p] = static_cast<const W*>(m.panels) + (q + p) * panel;
  int64_t k = 0;
  do {
    const int64_t K = kInput && !kScaled ? least(m.K - k, block_steps(m.K)) : m.K;
    V sums[NQ][MR][NV];
#pragma GCC unroll 4
    for (int p = 0; p < NQ; ++p) {
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) {
          sums[p][r][j] = kInput || kScaled ? V(S(0)) : V::load(m.bias + (q + p) * kWidth + j * L);
        }
      }
    }
    add_steps<NQ, MR, NV>(rows, k, K, w, sums);
#pragma GCC unroll 4
    for (int p = 0; p < NQ; ++p) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        const int64_t column = (q + p) * kWidth + j * L;
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) {
          V sum = sums[p][r][j];
          S* out = to + (i + r) * columns + column;
          if constexpr (kScaled) {
            sum = V::load(m.bias + column) + V::load(m.scale + column) * sum;
          } else if constexpr (kInput) {
            sum = (k == 0 ? V::load(m.bias + column) : V::load(out)) + sum;
          }
          sum.store(out);
        }
      }
    }
    k += K;
  } while (k < m.K);
}

template <bool kInput, int NV, class W, class S>
void panels_times(const Matrix<S>& m, Range panels, const Rows<S>& in, S* to) {
  constexpr int kMax = kMaxRows<NV>, kMostPanels = 12 / NV;
  int64_t q = panels.begin;
  if (in.n == 1) {  // several at once: one panel's few sums would wait for one another
    for (; q + kMostPanels <= panels.end; q += kMostPanels)
      tile<kInput, kMostPanels, 1, NV, W>(m, q, in, 0, to);
    for (; q + 2 <= panels.end; q += 2) tile<kInput, 2, 1, NV, W>(m, q, in, 0, to);
  }
  for (; q < panels.end; ++q) {
    int64_t i = 0;
    for (; i + kMax <= in.n; i += kMax) tile<kInput, 1, kMax, NV, W>(m, q, in, i, to);
    for (; i + 2 <= in.n; i += 2) tile<kInput, 1, 2, NV, W>(m, q, in, i, to);
    for (; i < in.n; ++i) tile<kInput, 1, 1, NV, W>(m, q, in, i, to);
  }
}

template <bool kInput, class W, class S>
void multiply_as(const Matrix<S>& m, Range panels, const Rows<S>& in, S* to) {
  if (m.values == 3) return panels_times<kInput, 3, W>(m, panels, in, to);
  panels_times<kInput, 4, W>(m, panels, in, to);
}

// Rows times the panels of a range, to rows of m.columns. kInput: as x's product is summed.
template <bool kInput>
void multiply(Storage storage, const Matrix<float>& m, Range panels, const Rows<float>& in,
              float* to) {
  if (storage == Storage::kInt8) return multiply_as<kInput, int8_t>(m, panels, in, to);
  if (storage == Storage::kBFloat16) return multiply_as<kInput, Pair>(m, panels, in, to);
  multiply_as<kInput, float>(m, panels, in, to);
}
template <bool kInput>
void multiply(Storage, const Matrix<double>& m, Range panels, const Rows<double>& in, double* to) {
  multiply_as<kInput, double>(m, panels, in, to);
}

// What the product with one-hot of width K at k is, and its bias.
template <class S>
inline Vec<S> column_of(Storage storage, const Matrix<S>& m, int64_t k, int64_t column) {
  using V = Vec<S>;
  const int64_t width = m.width, q = column / width;
  const V bias = V::load(m.bias + column);
  if constexpr (sizeof(S) == 4) {
    if (storage == Storage::kBFloat16) {
      const int64_t at = (q * divide_up(m.K, 2) + k / 2) * width + column % width;
      return unpacked<S>(static_cast<const Pair*>(m.panels) + at, int(k % 2)) + bias;
    }
    if (storage == Storage::kInt8) {
      const int8_t* from = static_cast<const int8_t*>(m.panels) + (q * m.K + k) * width;
      return bias + V::load(m.scale + column) * unpacked<S>(from + column % width, 0);
    }
  }
  return V::load(static_cast<const S*>(m.panels) + (q * m.K + k) * width + column % width) + bias;
}

// The nearest bfloat16, ties to even; a NaN stays one.
inline uint32_t bfloat16_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// The nearest of -127 … 127 times largest / 127, ties to even.
inline int8_t int8_of(double x, double largest) {
  constexpr double kRound = Constants<double>::kRound;
  return static_cast<int8_t>(static_cast<int>(127 * x / largest + kRound - kRound));
}

// Packs gates [first, first + m.values) of `w` [G·outputs, K] and `b` [G·outputs] or null.
template <class S>
void pack_matrix(Storage storage, const S* w, const S* b, int first, const Matrix<S>& m) {
  constexpr int64_t L = Vec<S>::kLanes;
  const int64_t U = m.units, width = m.width, K = m.K;
  char* panels = static_cast<char*>(const_cast<void*>(m.panels));
  S *bias = const_cast<S*>(m.bias), *scale = const_cast<S*>(m.scale);
  const int64_t each = bytes_of(storage, width, K);
  fill_zero(panels, m.count * each);
  for (int64_t column = 0; column < m.columns; ++column) {
    const int64_t q = column / width, vector = column % width / L;
    const int64_t unit = (q * U + vector / m.values) * L + column % L;
    bias[column] = S(0);
    if (scale) scale[column] = S(0);
    if (unit >= m.outputs) continue;
    const int64_t row = (first + vector % m.values) * m.outputs + unit;
    const S* from = w + row * K;
    if (b) bias[column] = b[row];
    char* to = panels + q * each;
    const int64_t at = column % width;
    if (storage == Storage::kInt8) {
      float largest = 0;
      for (int64_t k = 0; k < K; ++k) {
        const float size = float(from[k] < 0 ? -from[k] : from[k]);
        if (size > largest) largest = size;
      }
      scale[column] = S(largest / 127);
      for (int64_t k = 0; k < K && largest > 0; ++k) {
        reinterpret_cast<int8_t*>(to)[k * width + at] = int8_of(from[k], largest);
      }
    } else if (storage == Storage::kBFloat16) {
      for (int64_t k = 0; k < K; ++k) {
        reinterpret_cast<Pair*>(to)[k / 2 * width + at] |= bfloat16_bits(float(from[k]))
                                                           << (k % 2 * 16);
      }
    } else {
      for (int64_t k = 0; k < K; ++k) reinterpret_cast<S*>(to)[k * width + at] = from[k];
    }
  }
}

}  // namespace rnnfast::cpu::RNNFAST_ISA::stream
