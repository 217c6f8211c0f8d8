// The input's part of the gates for a loop that is compiled at run time, and backward the gradient of
// the input: the loop calls what is here by pointers (scan/steps.h).
#pragma once

#include "cpu/input.h"
#include "cpu/input_gradient.h"
#include "scan/steps.h"

namespace rnnfast::cpu::RNNFAST_ISA {

template <class S>
class LoopInput {
  using V = Vec<S>;
  static constexpr int64_t kRows = kInPlaceRows > 0 ? kInPlaceRows : 1;

 public:
  // Bytes beside those of InputSteps.
  static constexpr int64_t kBytes = 256;

  // Of f the sizes, the split, `reverse`, `in_place`, `gates` and what is said of the input are read,
  // whenever it is called. What it makes lies in f.workspace.
  static rnnfast::steps::Input of(const Forward<S>& f, int64_t columns) {
    static_assert(sizeof(LoopInput) <= kBytes);
    Arena arena(f.workspace);
    LoopInput* const made = arena.take<LoopInput>(1);
    *made = LoopInput(f, columns, InputSteps<S>(arena, f, columns));
    return {made, f.in_place ? &multiply_in_place : &pack, &before, nullptr};
  }

 private:
  LoopInput(const Forward<S>& f, int64_t columns, const InputSteps<S>& steps)
      : f_(&f), columns_(columns), steps_(steps) {}

  static const LoopInput& at(const void* of) { return *static_cast<const LoopInput*>(of); }

  static void pack(const void* of, int id, int n) {
    at(of).steps_.pack(Place{id, 0, Split{n, 1}, nullptr, nullptr});
  }

  static void* before(const void* of, int64_t step, int row, int64_t first, int64_t last) {
    const LoopInput& own = at(of);
    const Forward<S>& f = *own.f_;
    const Place place{row, 0, f.split, nullptr, nullptr};
    const Rules rules{f.T, f.B, nullptr, nullptr, f.reverse};
    if (f.in_place) return own.steps_.row(0, {first, last}, place, rules.time(step));
    return own.steps_.before(step, {first, last}, place, [&](int64_t s) { return rules.time(s); });
  }

  // All rows of the only step.
  static void multiply_in_place(const void* of, int id, int n) {
    const LoopInput& own = at(of);
    const int64_t columns = own.columns_, B = own.f_->B;
    const S* x[kRows];
    for (int64_t b = 0; b < B; ++b) x[b] = own.steps_.x(0, b);
    const Range mine = part(divide_up(columns, V::kLanes), 1, id, n);
    for (int64_t v = mine.begin; v < mine.end; ++v) {
      const int64_t column = v * V::kLanes;
      int64_t b = 0;
      for (; b + 4 <= B; b += 4) own.template rows<4>(x, b, column);
      for (; b + 2 <= B; b += 2) own.template rows<2>(x, b, column);
      for (; b < B; ++b) own.template rows<1>(x, b, column);
    }
  }

  template <int R>
  void rows(const S* const* x, int64_t first, int64_t column) const {
    const int64_t lanes = columns_ - column;
    V made[R];
    steps_.template multiply_in_place<R>(x + first, column, lanes, made);
    S* const to = steps_.row(0, {0, f_->B}, Place{}, 0) + column;
    for (int r = 0; r < R; ++r) made[r].store(to + (first + r) * columns_, lanes);
  }

  const Forward<S>* f_;
  int64_t columns_;
  InputSteps<S> steps_;
};

template <class S>
class LoopInputGradient {
 public:
  static constexpr int64_t kBytes = 128;  // beside those of InputGradient

  // Of g the sizes, `reverse`, dgx and what is said of the input are read, whenever it is called.
  static rnnfast::steps::Input of(const Backward<S>& g, int64_t columns) {
    static_assert(sizeof(LoopInputGradient) <= kBytes);
    Arena arena(g.workspace);
    LoopInputGradient* const made = arena.take<LoopInputGradient>(1);
    *made = LoopInputGradient(g, InputGradient<S, S>(arena, g, columns));
    return {made, &pack, nullptr, &after};
  }

 private:
  LoopInputGradient(const Backward<S>& g, const InputGradient<S, S>& gradient)
      : g_(&g), gradient_(gradient) {}

  static const LoopInputGradient& at(const void* of) {
    return *static_cast<const LoopInputGradient*>(of);
  }

  static void pack(const void* of, int id, int n) {
    at(of).gradient_.pack(Place{id, 0, Split{n, 1}, nullptr, nullptr});
  }

  static void after(const void* of, int64_t step, int64_t first, int64_t last) {
    const Backward<S>& g = *at(of).g_;
    const Rules rules{g.T, g.B, nullptr, nullptr, g.reverse};
    at(of).gradient_.after(step, {first, last}, [&](int64_t s) { return rules.time(s); });
  }

  const Backward<S>* g_;
  InputGradient<S, S> gradient_;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
