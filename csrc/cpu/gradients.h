// The gradients of a scan's input and weights from what its backward left, for whoever has tensors,
// as call.h has the scan itself. What tensors hold was checked; gradients are stored like the scan's
// tensors, and those of gates as D.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cpu/call.h"
#include "cpu/threads.h"
#include "cpu/weight_sums.h"

namespace rnnfast::cpu {

// What backward left, what it is multiplied with, and the gradients to be made of it. All
// contiguous, but x, which may have any strides but the last.
template <class Tensor>
struct Left {
  using Optional = std::optional<Tensor>;
  const CellInfo& cell;
  int64_t T, B, H, P, groups;
  bool reverse;
  Tensor dgx, y, h0;
  Optional x{}, extra{}, dgh_own{}, dh_total{}, lengths{}, resets{};
  Optional dw_ih{}, dw_hh{}, dw_hr{}, db_ih{}, db_hh{};
};

// Rounds to nearest even, as torch does.
inline void round(BFloat16* to, const float* from, int64_t n) { kernels().bf16.round(to, from, n); }
inline void round(Half* to, const float* from, int64_t n) { kernels().f16.round(to, from, n); }

template <class X>
void round(X* to, const float* from, int64_t n, int threads) {
  constexpr int64_t kWorthThreads = 1 << 16;
  on_threads(n < kWorthThreads ? 1 : threads, [&](int id, int found) {
    const int64_t begin = n * id / found, end = n * (id + 1) / found;
    round(to + begin, from + begin, end - begin);
  });
}

// Where sums go: the gradients' own memory or, of 16-bit ones, other, from which they are rounded
// when all is added up.
template <class X>
class Results {
  using S = Wide<X>;

 public:
  template <class Tensor>
  S* room(const std::optional<Tensor>& gradient) {
    return gradient ? room(*gradient) : nullptr;
  }
  template <class Tensor>
  S* room(const Tensor& gradient) {
    if constexpr (kNarrow<X>) {
      const int64_t n = gradient.numel();
      pieces_.push_back({data<X>(gradient), n, std::unique_ptr<S[]>(new S[size_t(n)])});
      return pieces_.back().sums.get();
    } else {
      return data<S>(gradient);
    }
  }
  void round([[maybe_unused]] int threads) const {
    if constexpr (kNarrow<X>) {
      for (const Piece& piece : pieces_)
        cpu::round(piece.to, piece.sums.get(), piece.size, threads);
    }
  }

 private:
  struct Piece {
    X* to;
    int64_t size;
    std::unique_ptr<S[]> sums;
  };
  std::vector<Piece> pieces_;
};

template <class X, class D, class Tensor>
void weight_gradients(const Left<Tensor>& left, int threads) {
  Results<X> results;
  WeightGradients<D, X> w;
  if (left.x) w.I = left.x->size(2), w.x_step = left.x->stride(0), w.x_row = left.x->stride(1);
  w.x = data<const X>(left.x), w.y = data<const X>(left.y), w.h0 = data<const X>(left.h0);
  w.extra = data<const X>(left.extra), w.dgx = data<const D>(left.dgx);
  w.dgh_own = data<const D>(left.dgh_own), w.dh_total = data<const D>(left.dh_total);
  w.dw_ih = results.room(left.dw_ih), w.dw_hh = results.room(left.dw_hh);
  w.dw_hr = results.room(left.dw_hr);
  w.db_ih = results.room(left.db_ih), w.db_hh = results.room(left.db_hh);
  Sums<D, X> sums;
  sums.T = left.T, sums.B = left.B, sums.groups = left.groups, sums.reverse = left.reverse;
  sums.lengths = data<const int64_t>(left.lengths), sums.resets = data<const bool>(left.resets);
  WeightSums<D, X>(left.cell, left.H, left.P, w, sums);
  add_up(sums, threads, scratch);
  results.round(threads);
}

// dgx [T, B, G·H] times w_ih [G·H, I]: that of x, to dx [T, B, I].
template <class X, class D, class Tensor>
void input_gradient(const Tensor& dgx, const Tensor& w_ih, const Tensor& dx, int threads) {
  if (dx.numel() == 0) return;
  Results<X> results;
  Gemm<D, X> g;
  g.M = dgx.size(0) * dgx.size(1), g.N = w_ih.size(1), g.K = w_ih.size(0);
  g.a = data<const D>(dgx), g.a_row = g.K, g.a_column = 1;
  g.b = data<const X>(w_ih), g.b_row = g.N, g.b_column = 1;
  g.c = results.room(dx), g.c_row = g.N;
  multiply(g, threads, scratch);
  results.round(threads);
}

}  // namespace rnnfast::cpu
