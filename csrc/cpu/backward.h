// Backward over T steps, last to first: the cell's backward from the saved gates, then the product
// of the gates' gradients with W_hhᵀ. Gradients of weights are sums over all steps at once and made
// outside, from dgx, dgh_own and dh_total; so is that of the input, where it is not made here.
#pragma once

#include <type_traits>

#include "cpu/input_gradient.h"
#include "cpu/tile_product.h"
#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

template <class Cell, class X, class D>
class BackwardPass {
  using S = Wide<X>;
  using Rows = LiveRows<D, X>;
  using V = Vec<S>;
  static constexpr int L = V::kLanes, G = Cell::kGates, N = kPhaseCount<Cell>;
  static constexpr int kLast = kGatePhases<Cell> - 1, kOwn = Cell::kOwnGate;
  static constexpr bool kTwoStates = Cell::kStates == 2;

 public:
  BackwardPass(const Backward<X, D>& g) : g_(g), rules_(rules_of(g)) {
    Arena arena(g.workspace);
    for (int p = 0; p < N; ++p) {
      const Phase& phase = Cell::kPhases[p];
      panels_[p] = Panels<D>(arena, operand_width(phase, g.H, g.P), kWide * L,
                             values_of(phase) * outputs_of(phase, g.H, g.P), false);
    }
    zeros_ = arena.take<X>(g.H > g.P ? g.H : g.P);
    if (g.dx) input_ = InputGradient<X, D>(arena, g, G * g.H);
    lists_ = arena.take<char>(0);
  }

  // Whether the team was dissolved.
  bool run() {
    return with_team(g_.split, [&](const Place& place) {
      pack(place);
      place.wait_for_all();
      scan(place);
    });
  }

 private:
  void pack(const Place& place) {
    if (place.id() == 0) {
      fill_zero(zeros_, g_.H > g_.P ? g_.H : g_.P);
      if (g_.dh_last) convert(g_.dh0, g_.dh_last, g_.B * g_.P);
      if (g_.dc_last) convert(g_.dc0, g_.dc_last, g_.B * g_.H);
    }
    if (g_.dx) input_.pack(place);
    // the first one's product is for the step before
    for (int p = g_.T > 1 || g_.of_states ? 0 : 1; p < N; ++p) {
      const Phase& phase = Cell::kPhases[p];
      const X* w = phase.matrix == Matrix::kWhr ? g_.w_hr : g_.w_hh + phase.first * g_.H * g_.P;
      const int64_t K = values_of(phase) * outputs_of(phase, g_.H, g_.P);
      const Range mine = place.share(panels_[p].count);
      for (int64_t q = mine.begin; q < mine.end; ++q) {
        pack_transposed<kWide, D>(w, K, operand_width(phase, g_.H, g_.P), q, panels_[p].panel(q));
      }
    }
  }

  void scan(const Place& place) {
    Rows rows = live_rows_of<D, X>(place, lists_, g_.B);
    const Range mine = part(g_.B, 1, place.row, place.split.rows);
    for (int64_t step = g_.T - 1; step >= 0; --step) {
      const int64_t t = rules_.time(step);
      collect(t, mine, place, rows);
      if constexpr (kProjected<Cell>) {
        total(t, place, rows);
      } else {
        pointwise(t, place, rows);
      }
      if (!place.wait()) return;
      down<N - 1>(t, place, rows, step > 0 || g_.of_states);
      // the next step's reads of dh are this thread's own, but for those of a later phase's product
      if (N > 1 && !place.wait()) return;
      if (g_.dx) input_.after(step, mine, [&](int64_t s) { return rules_.time(s); });
    }
  }

  // The phases from p to the first: each one's product, and with it the pointwise part before.
  // before: whether the step before, or the first state, needs its gradient.
  template <int p>
  void down(int64_t t, const Place& place, const Rows& rows, bool before) {
    if constexpr (p == 0) {
      if (before) first_product(t, place, rows);
    } else {
      product<p>(place, rows,
                 [&](int64_t i, int64_t j, int64_t n, V d) { unit<p - 1>(t, rows, i, j, n, d); });
      if (!place.wait()) return;
      down<p - 1>(t, place, rows, before);
    }
  }

  void collect(int64_t t, Range mine, const Place& place, Rows& rows) {
    rows.n = 0;
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      if (!rules_.alive(t, b)) {
        if (place.unit == 0) clear(t, b);
        continue;
      }
      const int64_t i = rows.n++;
      rows.b[i] = b;
      rows.h[i] = rules_.previous(g_.y, g_.h0, zeros_, t, b, g_.P);
      if constexpr (kTwoStates) rows.c[i] = rules_.previous(g_.c, g_.c0, zeros_, t, b, g_.H);
      rows.dgx[i] = dgx_row(t, b);
      if constexpr (kOwn >= 0) rows.dgh[i] = dgh_own_row(t, b);
      if constexpr (kProjected<Cell>) rows.total[i] = total_row(t, b);
    }
  }

  void clear(int64_t t, int64_t b) {
    fill_zero(dgx_row(t, b), G * g_.H);
    if constexpr (kOwn >= 0) fill_zero(dgh_own_row(t, b), g_.H);
    if constexpr (kProjected<Cell>) fill_zero(total_row(t, b), g_.P);
  }

  D* dgx_row(int64_t t, int64_t b) const { return g_.dgx + (t * g_.B + b) * G * g_.H; }
  D* dgh_own_row(int64_t t, int64_t b) const { return g_.dgh_own + (t * g_.B + b) * g_.H; }
  D* total_row(int64_t t, int64_t b) const { return g_.dh_total + (t * g_.B + b) * g_.P; }

  // This thread's part of a range of units, whole panels of the products.
  Range own(int64_t size, const Place& place) const {
    return part(size, kWide * L, place.unit, place.split.units);
  }

  // Projected: the gradient of h' as it enters the step.
  void total(int64_t t, const Place& place, const Rows& rows) {
    const Range mine = own(g_.P, place);
    for (int64_t i = 0; i < rows.n; ++i) {
      const int64_t b = rows.b[i];
      for (int64_t j = mine.begin; j < mine.end; j += L) {
        write_factor(incoming(t, b, j, mine.end - j), total_row(t, b) + j, mine.end - j);
      }
    }
  }

  // dh of the future plus dy.
  V incoming(int64_t t, int64_t b, int64_t j, int64_t n) const {
    const V dh = V::load(g_.dh0 + b * g_.P + j, n);
    return g_.dy ? dh + read(g_.dy + (t * g_.B + b) * g_.P + j, n) : dh;
  }

  void pointwise(int64_t t, const Place& place, const Rows& rows) {
    const Range mine = own(g_.H, place);
    for (int64_t i = 0; i < rows.n; ++i) {
      for (int64_t j = mine.begin; j < mine.end; j += L) {
        unit<kLast>(t, rows, i, j, mine.end - j, incoming(t, rows.b[i], j, mine.end - j));
      }
    }
  }

  // The pointwise part of a phase for one vector of units of one row; d: the gradient of what it
  // made. One piece of code for all rows: inlined where it is called the compiler could fuse
  // multiply-adds differently in the loops over many rows and over few, and results would depend on
  // how many rows a thread has. With all that it calls in it, whose vectors would go through memory.
  template <int p>
  __attribute__((noinline, flatten)) void unit(int64_t t, const Rows& rows, int64_t i, int64_t j,
                                               int64_t n, V d) const {
    constexpr unsigned kGrads = Cell::kPhases[p].grads, kParts = kGrads & grads_after<Cell>(p);
    const int64_t b = rows.b[i], H = g_.H, row = t * g_.B + b;
    V ds_new[Cell::kStates], saved[Cell::kSaved], s[Cell::kStates], ds[Cell::kStates];
    V dgx[G], dgh[G];
    D* const dgates = dgx_row(t, b) + j;
    S* const dh = g_.dh0 + b * g_.P + j;
    ds_new[0] = d;
    s[0] = Cell::kReadsH ? read(rows.h[i] + j, n) : V(S(0));
    load_saved(row, j, n, saved);
    if constexpr (kTwoStates) {
      s[1] = read(rows.c[i] + j, n);
      ds_new[1] = p == kLast ? V::load(g_.dc0 + b * H + j, n) : V(S(0));
      if (p == kLast && g_.dc) ds_new[1] = ds_new[1] + read(g_.dc + row * H + j, n);
    }
    if constexpr (p < kLast) {
      ds[0] = V::load(dh, n);
      if constexpr (kTwoStates) ds[1] = V::load(g_.dc0 + b * H + j, n);
      unrolled<G>([&](auto g) {
        if constexpr (has_bit(kParts, g)) {
          dgx[g] = dgh[g] = read(dgates + g * H, n);
          if (g == kOwn) dgh[g] = read(dgh_own_row(t, b) + j, n);
        }
      });
    }
    Cell::backward(At<p>{}, ds_new, saved, s, dgx, dgh, ds);
    unrolled<G>([&](auto g) {
      if constexpr (has_bit(kGrads, g)) {
        write_factor(dgx[g], dgates + g * H, n);
        if (g == kOwn) write_factor(dgh[g], dgh_own_row(t, b) + j, n);
      }
    });
    if constexpr (kTwoStates) {
      if (p == 0 && rules_.reset(t, b)) ds[1] = V(S(0));
      (p == 0 ? limited(ds[1]) : ds[1]).store(g_.dc0 + b * H + j, n);
    }
    // what goes straight to the state before; the product adds to it
    if constexpr (!kProjected<Cell>) ds[0].store(dh, n);
  }

  void load_saved(int64_t row, int64_t j, int64_t n, V (&saved)[Cell::kSaved]) const {
    if constexpr (Cell::kSavesOutput) {
      saved[0] = read(g_.y + row * g_.P + j, n);
    } else {
      const int64_t first = row * G * g_.H + j;
      for (int g = 0; g < G; ++g) saved[g] = gate(first + g * g_.H, n);
      if constexpr (kHasExtra<Cell>) saved[G] = read(g_.extra + row * g_.H + j, n);
    }
  }

  V gate(int64_t at, int64_t n) const {
    if constexpr (std::is_same_v<S, float> && kBoundedGates<Cell>) {
      if (g_.fixed) return V::load_fixed(g_.fixed + at, n);
    }
    return V::load(g_.gates + at, n);
  }

  // grad_clip_time: without it the bound is infinite and nothing lies beyond; a NaN is kept.
  V limited(V g) const {
    const V limit(g_.clip.limit), negative(-g_.clip.limit);
    const V high = select<S>(g.v > g_.clip.bound, limit, g);
    return select<S>(g.v < -g_.clip.bound, negative, high);
  }

  // dh of the step before: what went straight there, plus W_hhᵀ·dgh; 0 across a reset.
  void first_product(int64_t t, const Place& place, const Rows& rows) {
    product<0>(place, rows, [&](int64_t i, int64_t j, int64_t n, V next) {
      const int64_t b = rows.b[i];
      S* dh = g_.dh0 + b * g_.P + j;
      if (!kProjected<Cell>) next = next + V::load(dh, n);
      if (rules_.reset(t, b)) next = V(S(0));
      limited(next).store(dh, n);
    });
  }

  // done(live row, j, n, the gradient of the operand's j-th values) of phase p.
  template <int p, class Done>
  void product(const Place& place, const Rows& rows, const Done& done) {
    constexpr Phase kPhase = Cell::kPhases[p];
    const int64_t H = g_.H, offset = kPhase.first * H, K = kPhase.gates * H;
    if constexpr (kPhase.matrix == Matrix::kWhr) {
      add_products<p>(place, rows, {{rows.total, g_.P}}, done);
    } else if constexpr (kOwn < kPhase.first || kOwn >= kPhase.first + kPhase.gates) {
      add_products<p>(place, rows, {{rows.dgx, K, offset}}, done);
    } else if constexpr (kPhase.gates == 1) {
      add_products<p>(place, rows, {{rows.dgh, H}}, done);
    } else {
      static_assert((kPhase.gates - 1) % 2 == 0 || !std::is_same_v<D, BFloat16>,
                    "a panel of pairs has no odd segment");
      add_products<p>(place, rows, {{rows.dgx, K - H, offset}, {rows.dgh, H}}, done);
    }
  }

  template <int p, int kSegments, class Done>
  void add_products(const Place& place, const Rows& rows, const Segment<D> (&segments)[kSegments],
                    const Done& done) {
    const int64_t width = operand_width(Cell::kPhases[p], g_.H, g_.P);
    const auto operands = [&](int64_t q) {
      const int vectors = panel_vectors(divide_up(width, L), q, kWide);
      Operands<D, kSegments> own{{}, panels_[p].panel(q), nullptr, vectors};
      for (int s = 0; s < kSegments; ++s) own.segments[s] = segments[s];
      return own;
    };
    const auto each = [&](int64_t q, int64_t i, const V* sum) {
      for (int u = 0; u < kWide; ++u) {
        const int64_t j = (q * kWide + u) * L;
        if (j >= width) break;
        done(i, j, width - j, sum[u]);
      }
    };
    const Range mine = part(panels_[p].count, 1, place.unit, place.split.units);
    step_product<kWide, kWide, kSegments, D>(g_.B, mine, rows.n, operands, each);
  }

  const Backward<X, D>& g_;
  const Rules rules_;
  Panels<D> panels_[N];
  InputGradient<X, D> input_;
  X* zeros_ = nullptr;
  char* lists_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
