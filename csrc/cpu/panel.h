// The product of the recurrent loop: rows of activations times packed weights.
//
// Weights are packed into panels of NV vectors: panel[k][j][lane], so that a step of k loads NV
// whole vectors, broadcasts one value of each of MR rows, and makes MR·NV multiply-adds into
// registers. A panel's column is one output unit (of one gate); each output is the sum over k in
// order, whatever MR, NV or the number of threads, so results do not depend on how work is split.
#pragma once

#include <cstdint>

#include "cpu/range.h"
#include "cpu/transpose.h"
#include "cpu/vec.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// Accumulators that leave room for NV weights and a broadcast: 32 registers or 16.
constexpr int kAccumulators = RNNFAST_VECTOR_BYTES == 64 ? 24 : 12;

template <int NV>
constexpr int kMaxRows = kAccumulators / NV;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A segment of the sum: K values of each row, from `offset` on, times K steps of the panel.
template <class S>
struct Segment {
  const S* const* rows;  // by live row
  int64_t K;
  int64_t offset = 0;
};

// Inlined by force, and the sums in locals: out of line they would live in memory. Of rows and
// weights the fewer are held in registers, so that with the sums they have room. kStep: from one
// value of a row to the next.
template <int MR, int NV, int kStep = 1, class S>
__attribute__((always_inline)) inline void multiply_add(const Segment<S>& segment, int64_t first,
                                                        const S* panel, Vec<S> (&sum)[MR][NV]) {
  using V = Vec<S>;
  const S* row[MR];
  typename V::Native total[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
    row[r] = segment.rows[first + r] + segment.offset;
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) total[r][j] = sum[r][j].v;
  }
  for (int64_t k = 0; k < segment.K; ++k) {
    if constexpr (MR < NV) {
      V x[MR];
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) x[r] = V(row[r][k * kStep]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        const V w = V::load(panel + j * V::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < MR; ++r) total[r][j] += x[r].v * w.v;
      }
    } else {
      V w[NV];
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) w[j] = V::load(panel + j * V::kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const V x(row[r][k * kStep]);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) total[r][j] += x.v * w[j].v;
      }
    }
    panel += NV * V::kLanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[r][j].v = total[r][j];
  }
}

// The sums of rows [first, first + MR) of one panel. A function of its own: beside a cell's gates
// the compiler would keep sums in memory, and each step of k wait for the one before.
template <int MR, int NV, int N, class S>
__attribute__((noinline)) void sum_rows(const Segment<S> (&segments)[N], int64_t first,
                                        const S* panel, const S* bias, Vec<S> (&sum)[MR][NV]) {
  using V = Vec<S>;
  V total[MR][NV];
  for (int r = 0; r < MR; ++r) {
    for (int j = 0; j < NV; ++j) total[r][j] = bias ? V::load(bias + j * V::kLanes) : V(S(0));
  }
  for (const Segment<S>& segment : segments) {
    multiply_add<MR, NV>(segment, first, panel, total);
    panel += segment.K * NV * V::kLanes;
  }
  for (int r = 0; r < MR; ++r) {
    for (int j = 0; j < NV; ++j) sum[r][j] = total[r][j];
  }
}

// Rows [first, first + MR) of one panel, then `done(row index, sums)` for each.
template <int MR, int NV, int N, class S, class Done>
inline void panel_rows(const Segment<S> (&segments)[N], int64_t first, const S* panel,
                       const S* bias, const Done& done) {
  Vec<S> sum[MR][NV];
  sum_rows<MR, NV>(segments, first, panel, bias, sum);
  for (int r = 0; r < MR; ++r) done(first + r, sum[r]);
}

// The sums of `rows` rows, MR or fewer.
template <int MR, int NV, int N, class S, int kMax>
inline void sum_some(int64_t rows, const Segment<S> (&segments)[N], int64_t first, const S* panel,
                     const S* bias, Vec<S> (&sum)[kMax][NV]) {
  if (rows == MR) {
    sum_rows<MR, NV>(segments, first, panel, bias, reinterpret_cast<Vec<S>(&)[MR][NV]>(sum));
  } else if constexpr (MR > 1) {
    sum_some<MR - 1, NV>(rows, segments, first, panel, bias, sum);
  }
}

// All of `n` rows against one panel, in as few groups as registers allow, for each reads the panel
// once; the last ones much alike, since one row by itself keeps few sums at work.
template <int NV, int N, class S, class Done>
inline void panel_product(const Segment<S> (&segments)[N], int64_t n, const S* panel, const S* bias,
                          const Done& done) {
  constexpr int kMax = kMaxRows<NV>;
  int64_t i = 0;
  for (; n - i == kMax || n - i >= 2 * kMax; i += kMax)
    panel_rows<kMax, NV>(segments, i, panel, bias, done);
  for (int64_t groups = divide_up(n - i, kMax); i < n; --groups) {
    const int64_t rows = divide_up(n - i, groups);
    Vec<S> sum[kMax][NV];
    sum_some<kMax, NV>(rows, segments, i, panel, bias, sum);
    for (int64_t r = 0; r < rows; ++r) done(i + r, sum[r]);
    i += rows;
  }
}

// What one panel of a product is multiplied with, and what its sums begin with: a bias, or 0.
template <class S, int N>
struct Operands {
  Segment<S> segments[N];
  const S *panel, *bias;
};

// One row against two panels at once: one panel's few sums would wait for one another, and two
// streams of weights are read faster than one.
template <int NV, class S, int N>
__attribute__((noinline)) void pair_product(const Operands<S, N> (&of)[2], Vec<S> (&sum)[2][NV]) {
  using V = Vec<S>;
  constexpr int L = V::kLanes;
  typename V::Native total[2][NV];
  const S* w[2] = {of[0].panel, of[1].panel};
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j)
      total[q][j] = (of[q].bias ? V::load(of[q].bias + j * L) : V(S(0))).v;
  }
  for (int s = 0; s < N; ++s) {
    const Segment<S>&first = of[0].segments[s], &second = of[1].segments[s];
    const S* row[2] = {first.rows[0] + first.offset, second.rows[0] + second.offset};
    for (int64_t k = 0; k < first.K; ++k) {
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        const V x(row[q][k]);
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) total[q][j] += x.v * V::load(w[q] + j * L).v;
        w[q] += NV * L;
      }
    }
  }
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) sum[q][j].v = total[q][j];
  }
}

// All of `n` rows against the panels of a range: done(panel, row index, sums) for each; operands(q):
// those of panel q.
template <int NV, int N, class S, class Of, class Done>
inline void panels_product(Range panels, int64_t n, const Of& operands, const Done& done) {
  int64_t q = panels.begin;
  for (; n == 1 && q + 2 <= panels.end; q += 2) {
    Vec<S> sum[2][NV];
    pair_product<NV, S, N>({operands(q), operands(q + 1)}, sum);
    for (int i = 0; i < 2; ++i) done(q + i, int64_t(0), sum[i]);
  }
  for (; q < panels.end; ++q) {
    const Operands<S, N> of = operands(q);
    panel_product<NV>(of.segments, n, of.panel, of.bias,
                      [&](int64_t i, const Vec<S>(&sum)[NV]) { done(q, i, sum); });
  }
}

// Packs panel q, of U vectors of units times G gates: column (u, g, lane) is row
// g·H + (q·U + u)·lanes + lane of `w` [G·H, K]; beyond H it is 0. Bias likewise, if there is one.
template <int U, int G, class S>
inline void pack_panel(const S* w, const S* b, int64_t H, int64_t K, int64_t q, S* panel, S* bias) {
  constexpr int L = Vec<S>::kLanes, NV = U * G;
  for (int u = 0; u < U; ++u) {
    for (int g = 0; g < G; ++g) {
      for (int lane = 0; lane < L; ++lane) {
        const int64_t unit = (q * U + u) * L + lane;
        const int column = (u * G + g) * L + lane;
        if (bias) bias[column] = b && unit < H ? b[g * H + unit] : S(0);
      }
    }
  }
  int64_t whole = 0;  // steps that are packed already, squares of values at a time
  if (kTransposes && (q + 1) * U * L <= H) {
    for (; whole + L <= K; whole += L) {
      for (int column = 0; column < NV; ++column) {
        const S* row = w + (column % G * H + (q * U + column / G) * L) * K + whole;
        Vec<S> square[L];
        for (int lane = 0; lane < L; ++lane) square[lane] = Vec<S>::load(row + lane * K);
        transpose(square);
        for (int k = 0; k < L; ++k) square[k].store(panel + ((whole + k) * NV + column) * L);
      }
    }
  }
  constexpr int64_t kBlock = 32;  // steps of k at a time, so that the panel's lines stay in L1
  for (int64_t k0 = whole; k0 < K; k0 += kBlock) {
    const int64_t k1 = k0 + kBlock < K ? k0 + kBlock : K;
    for (int column = 0; column < NV * L; ++column) {
      const int vector = column / L, u = vector / G, g = vector % G;
      const int64_t unit = (q * U + u) * L + column % L;
      const S* row = w + (g * H + unit) * K;
      for (int64_t k = k0; k < k1; ++k) panel[k * NV * L + column] = unit < H ? row[k] : S(0);
    }
  }
}

// Packs panel q of the transposed product: column j·lanes + lane is column q·NV·lanes + … of `w`
// [K, P]; beyond P it is 0.
template <int NV, class S>
inline void pack_transposed(const S* w, int64_t K, int64_t P, int64_t q, S* panel) {
  constexpr int64_t kWidth = NV * Vec<S>::kLanes;
  const int64_t first = q * kWidth, n = P - first < kWidth ? P - first : kWidth;
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t j = 0; j < n; ++j) panel[k * kWidth + j] = w[k * P + first + j];
    for (int64_t j = n; j < kWidth; ++j) panel[k * kWidth + j] = S(0);
  }
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
