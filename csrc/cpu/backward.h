// Backward over T steps, last to first: the cell's backward from the saved gates, then the product
// of the gates' gradients with W_hhᵀ. Gradients of weights and inputs are large products over all
// steps at once and made outside, from dgx, dgh_n and dh_total.
#pragma once

#include <type_traits>

#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

template <class Cell, class S>
class BackwardPass {
  using V = Vec<S>;
  static constexpr int L = V::kLanes, G = Cell::kGates;
  static constexpr int kWide = 4;
  static constexpr bool kTwoStates = Cell::kStates == 2;
  static constexpr bool kTwoPhases = Cell::kPhases == 2;
  static constexpr bool kHasExtra = Cell::kSaved > G;
  // a cell that saves its output only reads it from y
  static constexpr bool kSavesGates = Cell::kSaved > 1;
  // whether the gradient of gh is another than that of gx, which is so for the GRU's n only
  static constexpr bool kOwnGhN = G == 3 && !kTwoPhases;
  static constexpr bool kSecond = kTwoPhases || Cell::kProjected;

 public:
  BackwardPass(const Backward<S>& g) : g_(g), steps_{g} {
    Arena arena(g.workspace);
    K_ = kTwoPhases ? 2 * g.H : G * g.H;
    first_ = Panels<S>(arena, g.P, kWide * L, K_, false);
    if constexpr (kSecond) {
      inner_ = Cell::kProjected ? g.P : g.H;
      second_ = Panels<S>(arena, g.H, kWide * L, inner_, false);
    }
    zeros_ = arena.take<S>(g.H > g.P ? g.H : g.P);
    lists_ = arena.take<char>(0);
  }

  void run() {
    with_team(g_.split, [&](const Place& place) { pack(place); });
    with_team(g_.split, [&](const Place& place) { scan(place); });
  }

 private:
  void pack(const Place& place) {
    if (place.id() == 0) fill_zero(zeros_, g_.H > g_.P ? g_.H : g_.P);
    const Range mine = place.share(first_.count);
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      pack_transposed<kWide>(g_.w_hh, K_, g_.P, q, first_.panel(q));
    }
    if constexpr (kSecond) {  // W_hr, or the candidate's rows of W_hh
      const S* w = Cell::kProjected ? g_.w_hr : g_.w_hh + 2 * g_.H * g_.P;
      const Range second = place.share(second_.count);
      for (int64_t q = second.begin; q < second.end; ++q) {
        pack_transposed<kWide>(w, inner_, g_.H, q, second_.panel(q));
      }
    }
  }

  void scan(const Place& place) {
    LiveRows<S> rows = live_rows_of<S>(place, lists_, g_.B);
    const Range mine = part(g_.B, 1, place.row, place.split.rows);
    for (int64_t step = g_.T - 1; step >= 0; --step) {
      const int64_t t = steps_.at(step);
      collect(t, mine, place, rows);
      if constexpr (Cell::kProjected) {
        total(t, place, rows);
        place.wait();
        second_product(t, place, rows);
      } else {
        pointwise(t, place, rows);
        if constexpr (kTwoPhases) {
          place.wait();
          second_product(t, place, rows);
        }
      }
      place.wait();
      first_product(t, place, rows);
      // the next step's reads of dh are this thread's own, but for W_hr's product
      if constexpr (kSecond) place.wait();
    }
  }

  void collect(int64_t t, Range mine, const Place& place, LiveRows<S>& rows) {
    rows.n = 0;
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      if (!steps_.alive(t, b)) {
        if (place.unit == 0) clear(t, b);
        continue;
      }
      const int64_t i = rows.n++;
      rows.b[i] = b;
      rows.h[i] = steps_.previous(g_.y, g_.h0, zeros_, t, b, g_.P);
      if constexpr (kTwoStates) rows.c[i] = steps_.previous(g_.c, g_.c0, zeros_, t, b, g_.H);
      rows.first[i] = dgx_row(t, b);
      if constexpr (kOwnGhN) rows.second[i] = dgh_n_row(t, b);
      if constexpr (kTwoPhases) rows.second[i] = dgx_row(t, b) + 2 * g_.H;
      if constexpr (Cell::kProjected) rows.second[i] = total_row(t, b);
    }
  }

  void clear(int64_t t, int64_t b) {
    fill_zero(dgx_row(t, b), G * g_.H);
    if constexpr (kOwnGhN) fill_zero(dgh_n_row(t, b), g_.H);
    if constexpr (Cell::kProjected) fill_zero(total_row(t, b), g_.P);
  }

  S* dgx_row(int64_t t, int64_t b) const { return g_.dgx + (t * g_.B + b) * G * g_.H; }
  S* dgh_n_row(int64_t t, int64_t b) const { return g_.dgh_n + (t * g_.B + b) * g_.H; }
  S* total_row(int64_t t, int64_t b) const { return g_.dh_total + (t * g_.B + b) * g_.P; }

  // This thread's part of a range of units, whole panels of the products.
  Range own(int64_t size, const Place& place) const {
    return part(size, kWide * L, place.unit, place.split.units);
  }

  // Projected: the gradient of h' as it enters the step.
  void total(int64_t t, const Place& place, const LiveRows<S>& rows) {
    const Range mine = own(g_.P, place);
    for (int64_t i = 0; i < rows.n; ++i) {
      const int64_t b = rows.b[i];
      for (int64_t j = mine.begin; j < mine.end; j += L) {
        incoming(t, b, j, mine.end - j).store(total_row(t, b) + j, mine.end - j);
      }
    }
  }

  // dh of the future plus dy.
  V incoming(int64_t t, int64_t b, int64_t j, int64_t n) const {
    const V dh = V::load(g_.dh0 + b * g_.P + j, n);
    return g_.dy ? dh + V::load(g_.dy + (t * g_.B + b) * g_.P + j, n) : dh;
  }

  void pointwise(int64_t t, const Place& place, const LiveRows<S>& rows) {
    const Range mine = own(g_.H, place);
    for (int64_t i = 0; i < rows.n; ++i) {
      for (int64_t j = mine.begin; j < mine.end; j += L) {
        unit(t, rows, i, j, mine.end - j, incoming(t, rows.b[i], j, mine.end - j));
      }
    }
  }

  // One vector of units of one row; dh: the gradient of what the gates made.
  void unit(int64_t t, const LiveRows<S>& rows, int64_t i, int64_t j, int64_t n, V dh) {
    const int64_t b = rows.b[i], H = g_.H, row = t * g_.B + b;
    V ds_new[Cell::kStates], saved[Cell::kSaved], s[Cell::kStates], ds[Cell::kStates];
    ds_new[0] = dh;
    load_saved(row, j, n, saved);
    s[0] = Cell::kProjected ? V(S(0)) : V::load(rows.h[i] + j, n);
    S* dgx = dgx_row(t, b) + j;
    if constexpr (kTwoPhases) {
      V dg_z, dg_n;
      Cell::backward_candidate(ds_new, saved, s, dg_z, dg_n, ds);
      dg_z.store(dgx + H, n);
      dg_n.store(dgx + 2 * H, n);
    } else {
      V dx[G], dh_gates[G];
      if constexpr (kTwoStates) {
        s[1] = V::load(rows.c[i] + j, n);
        ds_new[1] = V::load(g_.dc0 + b * H + j, n);
        if (g_.dc) ds_new[1] = ds_new[1] + V::load(g_.dc + row * H + j, n);
      }
      Cell::backward(ds_new, saved, s, dx, dh_gates, ds);
      for (int g = 0; g < G; ++g) dx[g].store(dgx + g * H, n);
      if constexpr (kOwnGhN) dh_gates[2].store(dgh_n_row(t, b) + j, n);
      if constexpr (kTwoStates) {
        if (steps_.reset(t, b)) ds[1] = V(S(0));
        limited(ds[1]).store(g_.dc0 + b * H + j, n);
      }
    }
    // what goes straight to the state before; the product adds to it
    if constexpr (!Cell::kProjected) ds[0].store(g_.dh0 + b * g_.P + j, n);
  }

  void load_saved(int64_t row, int64_t j, int64_t n, V (&saved)[Cell::kSaved]) const {
    if constexpr (!kSavesGates) {
      saved[0] = V::load(g_.y + row * g_.P + j, n);
    } else {
      const int64_t first = row * G * g_.H + j;
      for (int g = 0; g < G; ++g) saved[g] = gate(first + g * g_.H, n);
      if constexpr (kHasExtra) saved[G] = V::load(g_.extra + row * g_.H + j, n);
    }
  }

  V gate(int64_t at, int64_t n) const {
    if constexpr (std::is_same_v<S, float>) {
      if (g_.fixed) return V::load_fixed(g_.fixed + at, n);
    }
    return V::load(g_.gates + at, n);
  }

  // Reset-before: du = W_hnᵀ·dg_n, then r. Projected: dm = W_hrᵀ·dh', then the gates.
  void second_product(int64_t t, const Place& place, const LiveRows<S>& rows) {
    const Range mine = part(second_.count, 1, place.unit, place.split.units);
    const Segment<S> segments[1] = {{rows.second, inner_}};
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      panel_product<kWide>(segments, rows.n, second_.panel(q), static_cast<const S*>(nullptr),
                           [&](int64_t i, const V(&sum)[kWide]) {
                             for (int u = 0; u < kWide; ++u) {
                               const int64_t j = (q * kWide + u) * L;
                               if (j >= g_.H) break;
                               if constexpr (Cell::kProjected) {
                                 unit(t, rows, i, j, g_.H - j, sum[u]);
                               } else {
                                 reset_unit(t, rows, i, j, g_.H - j, sum[u]);
                               }
                             }
                           });
    }
  }

  // Never inlined: the compiler could fuse multiply-adds differently in the loops over many rows
  // and over few, and results would depend on how many rows a thread has.
  __attribute__((noinline)) void reset_unit(int64_t t, const LiveRows<S>& rows, int64_t i,
                                            int64_t j, int64_t n, V du) {
    if constexpr (kTwoPhases) {
      const int64_t b = rows.b[i];
      V saved[Cell::kSaved], s[1] = {V::load(rows.h[i] + j, n)}, dg_r;
      load_saved(t * g_.B + b, j, n, saved);
      S* dh = g_.dh0 + b * g_.P + j;
      V ds[1] = {V::load(dh, n)};
      Cell::backward_reset(du, saved, s, dg_r, ds);
      dg_r.store(dgx_row(t, b) + j, n);
      ds[0].store(dh, n);
    }
  }

  // grad_clip_time: without it the bound is infinite and nothing lies beyond; a NaN is kept.
  V limited(V g) const {
    const V limit(g_.clip.limit), negative(-g_.clip.limit);
    const V high = select<S>(g.v > g_.clip.bound, limit, g);
    return select<S>(g.v < -g_.clip.bound, negative, high);
  }

  // dh of the step before: what went straight there, plus W_hhᵀ·dgh; 0 across a reset.
  void first_product(int64_t t, const Place& place, const LiveRows<S>& rows) {
    if constexpr (kOwnGhN) {
      add_products<2>(t, place, rows, {{rows.first, 2 * g_.H}, {rows.second, g_.H}});
    } else {
      add_products<1>(t, place, rows, {{rows.first, K_}});
    }
  }

  template <int N>
  void add_products(int64_t t, const Place& place, const LiveRows<S>& rows,
                    const Segment<S> (&segments)[N]) {
    const Range mine = part(first_.count, 1, place.unit, place.split.units);
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      panel_product<kWide>(segments, rows.n, first_.panel(q), static_cast<const S*>(nullptr),
                           [&](int64_t i, const V(&sum)[kWide]) {
                             const int64_t b = rows.b[i];
                             const bool cut = steps_.reset(t, b);
                             for (int u = 0; u < kWide; ++u) {
                               const int64_t j = (q * kWide + u) * L;
                               if (j >= g_.P) break;
                               S* dh = g_.dh0 + b * g_.P + j;
                               V next = sum[u];
                               if (!Cell::kProjected) next = next + V::load(dh, g_.P - j);
                               if (cut) next = V(S(0));
                               limited(next).store(dh, g_.P - j);
                             }
                           });
    }
  }

  const Backward<S>& g_;
  Steps<S> steps_;
  Panels<S> first_, second_;
  int64_t K_ = 0, inner_ = 0;
  S* zeros_ = nullptr;
  char* lists_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
