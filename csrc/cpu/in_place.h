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
template <class S>
struct WeightRows {
  const S* w;
  int64_t stride, lanes;
};

// Values [k, k + n) of the rows, by k. `whole`: as many as there are lanes, each way.
template <bool whole, class S>
inline void load_square(const WeightRows<S>& of, int64_t k, int64_t n,
                        Vec<S> (&square)[Vec<S>::kLanes]) {
  using V = Vec<S>;
#pragma GCC unroll 16
  for (int lane = 0; lane < V::kLanes; ++lane) {
    const S* from = of.w + lane * of.stride + k;
    if constexpr (whole) {
      square[lane] = V::load(from);
    } else {
      square[lane] = lane < of.lanes ? V::load(from, n) : V(S(0));
    }
  }
  transpose(square);
}

// Adds to the sums of rows [first, first + R) what the segment's steps give; lane l of a sum is that
// of weight row l, whose values are those of the segment's steps.
template <int R, class S>
__attribute__((noinline)) void add_in_place(const Segment<S>& segment, int64_t first,
                                            const WeightRows<S>& of, Vec<S> (&sum)[R]) {
  using V = Vec<S>;
  constexpr int L = V::kLanes;
  const S* row[R];
  V total[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    row[r] = segment.rows[first + r] + segment.offset;
    total[r] = sum[r];
  }
  int64_t k = 0;
  V square[L];
  for (; of.lanes >= L && k + L <= segment.K; k += L) {
    load_square<true>(of, k, L, square);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) total[r].v += V(row[r][k + i]).v * square[i].v;
    }
  }
  for (; k < segment.K; k += L) {
    const int64_t n = segment.K - k < L ? segment.K - k : L;
    load_square<false>(of, k, n, square);
    for (int64_t i = 0; i < n; ++i) {
      for (int r = 0; r < R; ++r) total[r].v += V(row[r][k + i]).v * square[i].v;
    }
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
