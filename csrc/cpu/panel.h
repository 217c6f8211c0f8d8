// The product of the recurrent loop: rows of activations times packed weights.
//
// Weights are packed into panels of NV vectors: panel[k][j][lane], so that a step of k loads NV
// whole vectors, broadcasts one value of each of MR rows, and makes MR·NV multiply-adds into
// registers. A panel's column is one output unit (of one gate); each output is the sum over k in
// order, whatever MR, NV or the number of threads, so results do not depend on how work is split.
// What is multiplied (E) is numbers, or pairs of bfloat16 (operand.h): panel[k/2][j][lane].
#pragma once

#include <cstdint>

#include "cpu/operand.h"
#include "cpu/range.h"
#include "cpu/transpose.h"
#include "cpu/unrolled.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// Accumulators that leave room for NV weights and a broadcast: 32 registers or 16.
constexpr int kAccumulators = RNNFAST_VECTOR_BYTES == 64 ? 24 : 12;

template <int NV>
constexpr int kMaxRows = kAccumulators / NV;
// And those that a panel is multiplied with at once: of a narrow one as many as keep the processor busy.
template <int NV>
constexpr int kPanelRows = kMaxRows<NV> < 8 ? kMaxRows<NV> : 8;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A segment of the sum: K values of each row, from `offset` on, times K steps of the panel.
template <class E>
struct Segment {
  const E* const* rows;  // by live row
  int64_t K;
  int64_t offset = 0;
};

// Inlined by force, and the sums in locals: out of line they would live in memory. Of rows and
// weights the fewer are held in registers, so that with the sums they have room. kStep: from one
// value of a row to the next.
template <int MR, int NV, int kStep = 1, class E>
__attribute__((always_inline)) inline void multiply_add(const Segment<E>& segment, int64_t first,
                                                        const PackedOf<E>* panel,
                                                        Vec<SumOf<E>> (&sum)[MR][NV]) {
  using V = Vec<SumOf<E>>;
  using Native = typename V::Native;
  constexpr int kSteps = Operand<E>::kSteps;
  const E* row[MR];
  Native total[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    row[r] = segment.rows[first + r] + segment.offset;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) total[r][j] = sum[r][j].v;
  }
  const auto add = [&](int64_t k, int64_t steps) __attribute__((always_inline)) {
    if constexpr (MR < NV) {
      Native x[MR];
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) x[r] = broadcast(row[r] + k * kStep, steps);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        const Native w = load_packed(panel + j * V::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) total[r][j] = multiplied_add<E>(total[r][j], x[r], w);
      }
    } else {
      Native w[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) w[j] = load_packed(panel + j * V::kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const Native x = broadcast(row[r] + k * kStep, steps);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) total[r][j] = multiplied_add<E>(total[r][j], x, w[j]);
      }
    }
    panel += NV * V::kLanes;
  };
  int64_t k = 0;
  for (; k + kSteps <= segment.K; k += kSteps) add(k, kSteps);
  if (kSteps > 1 && k < segment.K) add(k, 1);
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[r][j].v = total[r][j];
  }
}

// The sums of rows [first, first + MR) of one panel. A function of its own: beside a cell's gates
// the compiler would keep sums in memory, and each step of k wait for the one before.
template <int MR, int NV, int N, class E>
__attribute__((noinline)) void sum_rows(const Segment<E> (&segments)[N], int64_t first,
                                        const PackedOf<E>* panel, const SumOf<E>* bias,
                                        Vec<SumOf<E>> (&sum)[MR][NV]) {
  using S = SumOf<E>;
  using V = Vec<S>;
  V total[MR][NV];
  for (int r = 0; r < MR; ++r) {
    for (int j = 0; j < NV; ++j) total[r][j] = bias ? V::load(bias + j * V::kLanes) : V(S(0));
  }
  for (const Segment<E>& segment : segments) {
    multiply_add<MR, NV>(segment, first, panel, total);
    panel += packed_steps<E>(segment.K) * NV * V::kLanes;
  }
  for (int r = 0; r < MR; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = total[r][j];
  }
}

// Rows [first, first + MR) of one panel, then `done(row index, sums)` for each. ahead(first, MR) is
// called before: what `done` will read can be fetched while the sums are made.
template <int MR, int NV, int N, class E, class Done, class Ahead>
inline void panel_rows(const Segment<E> (&segments)[N], int64_t first, const PackedOf<E>* panel,
                       const SumOf<E>* bias, const Done& done, const Ahead& ahead) {
  Vec<SumOf<E>> sum[MR][NV];
  ahead(first, MR);
  sum_rows<MR, NV>(segments, first, panel, bias, sum);
  for (int r = 0; r < MR; ++r) done(first + r, sum[r]);
}

// The sums of `rows` rows, MR or fewer.
template <int MR, int NV, int N, class E, int kMax>
inline void sum_some(int64_t rows, const Segment<E> (&segments)[N], int64_t first,
                     const PackedOf<E>* panel, const SumOf<E>* bias,
                     Vec<SumOf<E>> (&sum)[kMax][NV]) {
  if (rows == MR) {
    sum_rows<MR, NV>(segments, first, panel, bias, reinterpret_cast<Vec<SumOf<E>>(&)[MR][NV]>(sum));
  } else if constexpr (MR > 1) {
    sum_some<MR - 1, NV>(rows, segments, first, panel, bias, sum);
  }
}

// All of `n` rows against one panel, in as few groups as registers allow, for each reads the panel
// once; the last ones much alike, since one row by itself keeps few sums at work.
template <int NV, int N, class E, class Done, class Ahead>
inline void panel_product(const Segment<E> (&segments)[N], int64_t n, const PackedOf<E>* panel,
                          const SumOf<E>* bias, const Done& done, const Ahead& ahead) {
  constexpr int kMax = kPanelRows<NV>;
  int64_t i = 0;
  for (; n - i == kMax || n - i >= 2 * kMax; i += kMax)
    panel_rows<kMax, NV>(segments, i, panel, bias, done, ahead);
  for (int64_t groups = divide_up(n - i, kMax); i < n; --groups) {
    const int64_t rows = divide_up(n - i, groups);
    Vec<SumOf<E>> sum[kMax][NV];
    ahead(i, rows);
    sum_some<kMax, NV>(rows, segments, i, panel, bias, sum);
    for (int64_t r = 0; r < rows; ++r) done(i + r, sum[r]);
    i += rows;
  }
}

// What one panel of a product is multiplied with, and what its sums begin with: a bias, or 0; and of
// how many vectors it is, which are fewer where outputs end.
template <class E, int N>
struct Operands {
  Segment<E> segments[N];
  const PackedOf<E>* panel;
  const SumOf<E>* bias;
  int vectors;
};

// Of vectors of outputs those in panel q, of up to `most`.
inline int panel_vectors(int64_t vectors, int64_t q, int most) {
  const int64_t left = vectors - q * most;
  return left < most ? int(left) : most;
}

// body(Index<vectors>), of up to `most` in steps of `grain`.
template <int most, int grain, class Body>
inline void with_vectors(int vectors, const Body& body) {
  if constexpr (most > grain) {
    if (vectors < most) return with_vectors<most - grain, grain>(vectors, body);
  }
  body(Index<most>{});
}

// One row against two panels at once: one panel's few sums would wait for one another, and two
// streams of weights are read faster than one.
template <int NV, class E, int N>
__attribute__((noinline)) void pair_product(const Operands<E, N> (&of)[2],
                                            Vec<SumOf<E>> (&sum)[2][NV]) {
  using S = SumOf<E>;
  using V = Vec<S>;
  constexpr int L = V::kLanes, kSteps = Operand<E>::kSteps;
  typename V::Native total[2][NV];
  const PackedOf<E>* w[2] = {of[0].panel, of[1].panel};
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j)
      total[q][j] = (of[q].bias ? V::load(of[q].bias + j * L) : V(S(0))).v;
  }
  for (int s = 0; s < N; ++s) {
    const Segment<E>&first = of[0].segments[s], &second = of[1].segments[s];
    const E* row[2] = {first.rows[0] + first.offset, second.rows[0] + second.offset};
    const auto add = [&](int64_t k, int64_t steps) __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        const auto x = broadcast(row[q] + k, steps);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j)
          total[q][j] = multiplied_add<E>(total[q][j], x, load_packed(w[q] + j * L));
        w[q] += NV * L;
      }
    };
    int64_t k = 0;
    for (; k + kSteps <= first.K; k += kSteps) add(k, kSteps);
    if (kSteps > 1 && k < first.K) add(k, 1);
  }
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[q][j].v = total[q][j];
  }
}

struct NothingAhead {
  void operator()(int64_t, int64_t, int64_t) const {}
};

// All of `n` rows against the panels of a range: done(panel, row index, sums) for each, and
// ahead(panel, first row, rows) before; operands(q): those of panel q. NV: vectors of a panel, U of
// units; fewer units at the end of outputs.
template <int NV, int U, int N, class E, class Of, class Done, class Ahead = NothingAhead>
inline void panels_product(Range panels, int64_t n, const Of& operands, const Done& done,
                           const Ahead& ahead = {}) {
  using V = Vec<SumOf<E>>;
  int64_t q = panels.begin;
  for (; n == 1 && q + 2 <= panels.end; q += 2) {
    const Operands<E, N> of[2] = {operands(q), operands(q + 1)};
    if (of[0].vectors + of[1].vectors < 2 * NV) break;
    V sum[2][NV];
    pair_product<NV, E, N>(of, sum);
    for (int i = 0; i < 2; ++i) done(q + i, int64_t(0), sum[i]);
  }
  for (; q < panels.end; ++q) {
    const Operands<E, N> of = operands(q);
    with_vectors<NV, NV / U>(of.vectors, [&](auto vectors) {
      panel_product<vectors>(
          of.segments, n, of.panel, of.bias, [&](int64_t i, const V* sum) { done(q, i, sum); },
          [&](int64_t first, int64_t rows) { ahead(q, first, rows); });
    });
  }
}

// A vector of what a row of weights has next to one another, as it is packed: values, or pairs.
template <class E, class X>
inline Vec<SumOf<E>> row_words(const X* from) {
  if constexpr (Operand<E>::kSteps == 1) {
    return read(from);
  } else {
    typedef float Loose __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(2), may_alias));
    return Vec<float>(Vec<float>::Native(*reinterpret_cast<const Loose*>(from)));
  }
}
// Of n steps, which are fewer; the others are 0.
template <class E, class X>
inline Vec<SumOf<E>> first_words(const X* from, int64_t n) {
  if constexpr (Operand<E>::kSteps == 1) {
    return read(from, n);
  } else {
    X part[2 * kWords];
    store_words(load_words(from, n), part, kWords);
    store_words(load_words(from + kWords, n - kWords), part + kWords, kWords);
    return row_words<E>(part);
  }
}
// The same of n values, `stride` apart, which are as many words or half as many.
template <class E, class X>
inline void row_words(const X* from, int64_t stride, int64_t n, PackedOf<E>* to) {
  if constexpr (Operand<E>::kSteps == 2) {
    for (int64_t k = 0; k < n; k += 2)
      to[k / 2] = from[k * stride].bits | (k + 1 < n ? Pair(from[(k + 1) * stride].bits) << 16 : 0);
  } else if (stride == 1) {
    convert(to, from, n);
  } else {
    for (int64_t k = 0; k < n; ++k) convert(to + k, from + k * stride, 1);
  }
}
template <class S>
inline void store_packed(Vec<S> words, PackedOf<S>* to) {
  words.store(to);
}
inline void store_packed(Vec<float> words, Pair* to) { words.store(reinterpret_cast<float*>(to)); }

// Packs panel q, of up to U vectors of units times G gates: column (u, g, lane) is row
// g·H + (q·U + u)·lanes + lane of `w` [G·H, K]; beyond H it is 0. Bias likewise, if there is one.
template <int U, int G, class E, class X>
inline void pack_panel(const X* w, const X* b, int64_t H, int64_t K, int64_t q, PackedOf<E>* panel,
                       SumOf<E>* bias) {
  using S = SumOf<E>;
  constexpr int L = Vec<S>::kLanes, kSteps = Operand<E>::kSteps;
  const int units = panel_vectors(divide_up(H, L), q, U), NV = units * G;
  for (int u = 0; u < units; ++u) {
    for (int g = 0; g < G; ++g) {
      const int64_t unit = (q * U + u) * L;
      Vec<S> values(S(0));
      if (b && unit < H) values = read(b + g * H + unit, H - unit);
      if (bias) values.store(bias + (u * G + g) * L);
    }
  }
  int64_t whole = 0;  // steps that are packed already, squares of words at a time
  if (kTransposes && (q * U + units) * L <= H) {
    for (; whole + L * kSteps <= K; whole += L * kSteps) {
      for (int column = 0; column < NV; ++column) {
        const X* row = w + (column % G * H + (q * U + column / G) * L) * K + whole;
        Vec<S> square[L];
        for (int lane = 0; lane < L; ++lane) square[lane] = row_words<E>(row + lane * K);
        transpose(square);
        for (int k = 0; k < L; ++k)
          store_packed(square[k], panel + ((whole / kSteps + k) * NV + column) * L);
      }
    }
  }
  constexpr int64_t kBlock = 32;  // steps of k at a time, so that the panel's lines stay in L1
  for (int64_t k0 = whole; k0 < K; k0 += kBlock) {
    const int64_t n = K - k0 < kBlock ? K - k0 : kBlock;
    for (int column = 0; column < NV * L; ++column) {
      const int vector = column / L, u = vector / G, g = vector % G;
      const int64_t unit = (q * U + u) * L + column % L;
      PackedOf<E> words[kBlock] = {};
      if (unit < H) row_words<E>(w + (g * H + unit) * K + k0, 1, n, words);
      for (int64_t k = 0; k < packed_steps<E>(n); ++k)
        panel[(k0 / kSteps + k) * NV * L + column] = words[k];
    }
  }
}

// Packs panel q of the transposed product, of up to NV vectors: column j·lanes + lane is column
// q·NV·lanes + … of `w` [K, P]; beyond P it is 0.
template <int NV, class E, class X>
inline void pack_transposed(const X* w, int64_t K, int64_t P, int64_t q, PackedOf<E>* panel) {
  constexpr int L = Vec<SumOf<E>>::kLanes;
  const int64_t first = q * NV * L, width = panel_vectors(divide_up(P, L), q, NV) * L;
  for (int64_t k = 0; k < K; k += Operand<E>::kSteps, panel += width) {
    const X* row = w + k * P + first;
    for (int64_t j = 0; j < width; j += L)
      pack_columns<E>(row + j, k + 1 < K ? P : 0, P - first - j, panel + j);
  }
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
