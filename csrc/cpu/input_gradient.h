// The gradient of a scan's input, dgx·W_ih, made by the scan itself: of a few steps of a thread's own
// sequences right after those of their gates, while these are still in the cache. The sums are those
// of the large product.
#pragma once

#include "cpu/gemm.h"
#include "cpu/input.h"
#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

template <class X, class D>
class InputGradient {
  using Part = GemmPart<D, X>;
  using Packed = PackedOf<std::conditional_t<kNarrow<X>, OperandOf<D>, D>>;

 public:
  // Elements of workspace, of a number as it is computed: W_ih as strips.
  static int64_t room(int64_t I, int64_t columns) { return Part::packed_elements(I, columns); }

  InputGradient() = default;
  InputGradient(Arena& arena, const Backward<X, D>& g, int64_t columns)
      : g_(&g), columns_(columns), packed_(arena.template take<Packed>(room(g.I, columns))) {}

  // This thread's share of W_ih.
  void pack(const Place& place) const {
    Part(product()).pack(place.share(Part::strips(g_->I)), packed_);
  }

  // After `step`, whose sequences `mine` are this thread's; steps come last to first. time(step): the
  // t of a step.
  template <class Time>
  void after(int64_t step, Range mine, const Time& time) const {
    const int64_t rows = mine.size();
    if (rows == 0) return;
    const int64_t block = rows < kInputRows ? kInputRows / rows : 1;
    if (step % block == 0) make(step, least(step + block, g_->T), mine, time);
  }

 private:
  template <class Time>
  void make(int64_t begin, int64_t end, Range mine, const Time& time) const {
    Gemm<D, X> g = product();
    g.M = mine.size();
    Part::each_block(g.K, [&](int64_t k, int64_t K) {
      for (int64_t strip = 0; strip < Part::strips(g.N); ++strip) {
        for (int64_t step = begin; step < end; ++step) {
          const int64_t row = time(step) * g_->B + mine.begin;
          g.a = g_->dgx + row * g.K, g.c = g_->dx + row * g.N;
          Part(g).multiply_packed(strip, k, K, packed_);
        }
      }
    });
  }

  Gemm<D, X> product() const {
    Gemm<D, X> g;
    g.N = g_->I, g.K = columns_, g.all_rows = g_->T * g_->B;
    g.a_row = columns_, g.a_column = 1;
    g.b = g_->w_ih, g.b_row = g_->I, g.b_column = 1;
    g.c_row = g_->I;
    return g;
  }

  const Backward<X, D>* g_ = nullptr;
  int64_t columns_ = 0;
  Packed* packed_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
