// Products with weights that are read where they lie. Packing a matrix is worth it where it is used
// several times; of one step of a few sequences each weight is used once or little more.
//
// Squares of weights are turned in registers, and each output is the sum over k in order, as with
// packed ones (panel.h): the results are the same bits.
#pragma once

#include "cpu/panel.h"

namespace rnnfast::cpu::RNNFAST_ISA {

constexpr int64_t kInPlaceRows = kTransposes ? 4 : 0;  // sequences, at most

// Up to a vector of rows of a weight, `stride` apart; `lanes` of them exist.
template <class X>
struct WeightRows {
  const X* w;
  int64_t stride, lanes;
};

// Steps [k, k + n) of the rows as words, by step. `whole`: as many as there are lanes, each way.
template <bool whole, class E, class X>
inline void load_square(const WeightRows<X>& of, int64_t k, int64_t n,
                        Vec<SumOf<E>> (&square)[Vec<SumOf<E>>::kLanes]) {
  using V = Vec<SumOf<E>>;
#pragma GCC unroll 16
  for (int lane = 0; lane < V::kLanes; ++lane) {
    const X* from = of.w + lane * of.stride + k;
    if constexpr (whole) {
      square[lane] = row_words<E>(from);
    } else {
      square[lane] = lane < of.lanes ? first_words<E>(from, n) : V(SumOf<E>(0));
    }
  }
  transpose(square);
}

// Adds to the sums of rows [first, first + R) what the segment's steps give; lane l of a sum is that
// of weight row l, whose values are those of the segment's steps.
template <int R, class E, class X>
__attribute__((noinline)) void add_in_place(const Segment<E>& segment, int64_t first,
                                            const WeightRows<X>& of, Vec<SumOf<E>> (&sum)[R]) {
  using V = Vec<SumOf<E>>;
  constexpr int L = V::kLanes, kSteps = Operand<E>::kSteps;
  constexpr int64_t kSquare = L * kSteps;
  const E* row[R];
  V total[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    row[r] = segment.rows[first + r] + segment.offset;
    total[r] = sum[r];
  }
  int64_t k = 0;
  V square[L];
  const auto add = [&](int64_t at, int64_t steps, V words) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      total[r].v = multiplied_add<E>(total[r].v, broadcast(row[r] + at, steps), words.v);
  };
  for (; of.lanes >= L && k + kSquare <= segment.K; k += kSquare) {
    load_square<true, E>(of, k, kSquare, square);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) add(k + i * kSteps, kSteps, square[i]);
  }
  for (; k < segment.K; k += kSquare) {
    const int64_t n = segment.K - k < kSquare ? segment.K - k : kSquare;
    load_square<false, E>(of, k, n, square);
    for (int64_t i = 0; i < n; i += kSteps) add(k + i, n - i, square[i / kSteps]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r] = total[r];
}

// The same of weights whose columns lie together, `stride` apart: lane l of a sum is that of the
// columns' value l.
template <int R, class S>
__attribute__((noinline)) void add_columns_in_place(const Segment<S>& segment, int64_t first,
                                                    const WeightRows<S>& of, Vec<S> (&sum)[R]) {
  using V = Vec<S>;
  const S* row[R];
  V total[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    row[r] = segment.rows[first + r] + segment.offset;
    total[r] = sum[r];
  }
  for (int64_t k = 0; k < segment.K; ++k) {
    const V w = V::load(of.w + k * of.stride, of.lanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) total[r].v += V(row[r][k]).v * w.v;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r] = total[r];
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
