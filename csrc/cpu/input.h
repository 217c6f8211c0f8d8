// The input's part of the gates, x·W_ihᵀ + b_ih, made by a scan itself, for a few steps of a
// thread's own sequences right before they are consumed: what is made is still in the cache, and of
// a scan that does not keep it there is never more. The sums are those of the large product.
#pragma once

#include "cpu/gemm.h"
#include "cpu/in_place.h"
#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

constexpr int64_t kInputRows = 64;  // of a block of steps; or one step, where that has more

template <class X>
class InputSteps {
  using E = OperandOf<X>;
  using S = SumOf<E>;
  using Part = GemmPart<E, X>;
  static constexpr bool kConverts = !std::is_same_v<E, X>;  // rows of x, to be multiplied

 public:
  // Elements S of workspace: W_ih as strips, what each row part makes, where nobody keeps it, and
  // its rows of x, where they are converted.
  static int64_t room(int64_t B, int64_t I, int64_t columns, Split split) {
    const int64_t rows = split.rows * buffer_rows(B, split);
    return Part::packed_elements(columns, I) + rows * (columns + (kConverts ? I : 0));
  }

  InputSteps() = default;
  InputSteps(Arena& arena, const Forward<X>& f, int64_t columns) : f_(&f), columns_(columns) {
    const int64_t rows = f.split.rows * buffer_rows(f.B, f.split);
    packed_ = arena.template take<PackedOf<E>>(Part::packed_elements(columns, f.I));
    if (!f.gates) made_ = arena.template take<S>(rows * columns);
    if (kConverts) rows_ = arena.template take<E>(rows * f.I);
  }

  // For products with weights as they lie: x of the first step, as it is multiplied.
  void convert_first() const {
    if constexpr (kConverts) {
      for (int64_t b = 0; b < f_->B; ++b) convert(rows_ + b * f_->I, f_->x + b * f_->x_row, f_->I);
    }
  }

  // This thread's share of W_ih.
  void pack(const Place& place) const {
    const Gemm<E, X> g = product();
    Part(g).pack(place.share(Part::strips(columns_)), packed_);
  }

  // Before step `step`, whose sequences `mine` are this thread's: where row b of its gates is, at
  // b · columns from what is returned. time(step): the t of a step.
  template <class Time>
  S* before(int64_t step, Range mine, const Place& place, const Time& time) const {
    const int64_t rows = mine.size(), block = rows < kInputRows ? kInputRows / rows : 1;
    if (step % block == 0) make(step, least(step + block, f_->T), mine, place, time);
    return row(step % block, mine, place, time(step));
  }

  const E* x(int64_t t, int64_t b) const {
    if constexpr (kConverts) {
      return rows_ + b * f_->I;
    } else {
      return f_->x + t * f_->x_step + b * f_->x_row;
    }
  }

  // Columns [column, column + lanes), a vector of them at most, of rows of x, with weights as they
  // lie.
  template <int R>
  void multiply_in_place(const E* const* x, int64_t column, int64_t lanes,
                         Vec<S> (&made)[R]) const {
    const int64_t I = f_->I;
    const Vec<S> bias = f_->b_ih ? read(f_->b_ih + column, lanes) : Vec<S>(S(0));
    Part::each_block(I, [&](int64_t k, int64_t K) {
      const WeightRows<X> rows{f_->w_ih + column * I + k, I, lanes};
      Vec<S> sum[R];
      for (int r = 0; r < R; ++r) sum[r] = Vec<S>(S(0));
      add_in_place<R>(Segment<E>{x, K, k}, 0, rows, sum);
      for (int r = 0; r < R; ++r) made[r] = (k == 0 ? bias : made[r]) + sum[r];
    });
  }

  // Where row b of a slot's step is, at b · columns from what is returned.
  S* row(int64_t slot, Range mine, const Place& place, int64_t t) const {
    if (f_->gates) return f_->gates + t * f_->B * columns_;
    const int64_t first = place.row * buffer_rows(f_->B, f_->split) + slot * mine.size();
    return made_ + (first - mine.begin) * columns_;
  }

 private:
  static int64_t buffer_rows(int64_t B, Split split) {
    const int64_t rows = divide_up(B, split.rows);
    return rows > kInputRows ? rows : kInputRows;
  }

  template <class Time>
  void make(int64_t begin, int64_t end, Range mine, const Place& place, const Time& time) const {
    Gemm<E, X> g = product();
    g.M = mine.size();
    const E* x[kInputRows];  // of each step
    for (int64_t step = begin; step < end; ++step)
      x[step - begin] = rows(step - begin, time(step), mine, place);
    Part::each_block(g.K, [&](int64_t k, int64_t K) {
      for (int64_t strip = 0; strip < Part::strips(columns_); ++strip) {
        for (int64_t step = begin; step < end; ++step) {
          const int64_t t = time(step);
          g.a = x[step - begin];
          g.c = row(step - begin, mine, place, t) + mine.begin * columns_;
          Part(g).multiply_packed(strip, k, K, packed_);
        }
      }
    });
  }

  // x of the rows `mine` at time t, as it is multiplied; of step `slot` of the block.
  const E* rows(int64_t slot, int64_t t, Range mine, const Place& place) const {
    const X* x = f_->x + t * f_->x_step + mine.begin * f_->x_row;
    if constexpr (kConverts) {
      const int64_t first = place.row * buffer_rows(f_->B, f_->split) + slot * mine.size();
      E* const to = rows_ + first * f_->I;
      for (int64_t b = 0; b < mine.size(); ++b) convert(to + b * f_->I, x + b * f_->x_row, f_->I);
      return to;
    } else {
      return x;
    }
  }

  Gemm<E, X> product() const {
    Gemm<E, X> g;
    g.N = columns_, g.K = f_->I, g.all_rows = f_->T * f_->B;
    g.a_row = kConverts ? f_->I : f_->x_row, g.a_column = 1;
    g.b = f_->w_ih, g.b_row = 1, g.b_column = f_->I;
    g.c_row = columns_;
    g.row = f_->b_ih;
    return g;
  }

  const Forward<X>* f_ = nullptr;
  int64_t columns_ = 0;
  PackedOf<E>* packed_ = nullptr;
  S* made_ = nullptr;
  E* rows_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
