// Forward over T steps: for each, the recurrent product of the live rows with packed weights, the
// cell's gates on the sums while they are in registers, and the state written once.
#pragma once

#include <type_traits>

#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// Panels of a cell's first product: gates that one hidden unit needs stand side by side.
template <class Cell>
constexpr int kFirstGates = Cell::kPhases == 2 ? 2 : Cell::kGates;

// A hidden unit of one row: where its values lie. Padding lanes of the last vector are cut by n.
struct Unit {
  int64_t j;  // first of the vector
  int64_t n;  // lanes that exist
};

template <class Cell, int U, class S>
class ForwardPass {
  using V = Vec<S>;
  static constexpr int L = V::kLanes, G = Cell::kGates, G1 = kFirstGates<Cell>, NV = U * G1;
  static constexpr int kWide = 4;  // vectors a panel of products with one output a unit
  static constexpr bool kTwoStates = Cell::kStates == 2;
  static constexpr bool kSecond = Cell::kPhases == 2 || Cell::kProjected;  // product in a step
  static constexpr bool kHasExtra = Cell::kSaved > G;
  // a cell that saves its output only has it in y
  static constexpr bool kSavesGates = Cell::kSaved > 1;

 public:
  ForwardPass(const Forward<S>& f) : f_(f), steps_{f} {
    Arena arena(f.workspace);
    first_ = Panels<S>(arena, divide_up(f.H, U * L) * NV * L, NV * L, f.P, true);
    if constexpr (kSecond) second_ = Panels<S>(arena, second_outputs(), kWide * L, f.H, true);
    zeros_ = arena.take<S>(f.H > f.P ? f.H : f.P);
    lists_ = arena.take<char>(0);
  }

  void run() {
    with_team(f_.split, [&](const Place& place) { pack(place); });
    with_team(f_.split, [&](const Place& place) { scan(place); });
  }

 private:
  void pack(const Place& place) {
    if (place.id() == 0) fill_zero(zeros_, f_.H > f_.P ? f_.H : f_.P);
    const Range mine = place.share(first_.count);
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      pack_panel<U, G1>(f_.w_hh, f_.b_hh, f_.H, f_.P, q, first_.panel(q), first_.bias(q));
    }
    if constexpr (kSecond) {
      const Range second = place.share(second_.count);
      for (int64_t q = second.begin; q < second.end; ++q) pack_second(q);
    }
  }

  void pack_second(int64_t q) {
    S *panel = second_.panel(q), *bias = second_.bias(q);
    if constexpr (Cell::kProjected) {
      pack_panel<kWide, 1, S>(f_.w_hr, nullptr, f_.P, f_.H, q, panel, bias);
    } else {  // the candidate's rows, the last H of W_hh
      const S* b = f_.b_hh ? f_.b_hh + 2 * f_.H : nullptr;
      pack_panel<kWide, 1, S>(f_.w_hh + 2 * f_.H * f_.P, b, f_.H, f_.H, q, panel, bias);
    }
  }

  void scan(const Place& place) {
    LiveRows<S> rows = live_rows_of<S>(place, lists_, f_.B);
    const Range mine = part(f_.B, 1, place.row, place.split.rows);
    if (kTwoStates && !f_.c && place.unit == 0) {
      copy(f_.c_last + mine.begin * f_.H, f_.c0 + mine.begin * f_.H, mine.size() * f_.H);
    }
    place.wait();
    for (int64_t step = 0; step < f_.T; ++step) {
      const int64_t t = steps_.at(step);
      collect(t, mine, place, rows);
      first_product(t, place, rows);
      if constexpr (kSecond) {
        place.wait();
        second_product(t, place, rows);
      }
      place.wait();
    }
    if (place.unit == 0) keep_last(mine);
  }

  // The live rows of step t, and where their previous states are; dead ones are zeroed.
  void collect(int64_t t, Range mine, const Place& place, LiveRows<S>& rows) {
    rows.n = 0;
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      if (!steps_.alive(t, b)) {
        if (place.unit == 0) clear(t, b);
        continue;
      }
      const int64_t i = rows.n++;
      rows.b[i] = b;
      rows.h[i] = steps_.previous(f_.y, f_.h0, zeros_, t, b, f_.P);
      if constexpr (kTwoStates) {
        rows.c[i] = f_.c ? steps_.previous(f_.c, f_.c0, zeros_, t, b, f_.H)
                         : (steps_.reset(t, b) ? zeros_ : f_.c_last + b * f_.H);
      }
      if constexpr (kHasExtra) rows.first[i] = extra_row(t, b);
    }
  }

  void clear(int64_t t, int64_t b) {
    fill_zero(f_.y + (t * f_.B + b) * f_.P, f_.P);
    if (kTwoStates && f_.c) fill_zero(f_.c + (t * f_.B + b) * f_.H, f_.H);
    if (kHasExtra && f_.training) fill_zero(extra_row(t, b), f_.H);  // weight gradients read it
  }

  int64_t second_outputs() const { return Cell::kProjected ? f_.P : f_.H; }
  S* extra_row(int64_t t, int64_t b) const {
    return f_.extra + (f_.training ? t * f_.B + b : b) * f_.H;
  }
  S* gates_row(int64_t t, int64_t b) const { return f_.gates + (t * f_.B + b) * G * f_.H; }
  S* y_row(int64_t t, int64_t b) const { return f_.y + (t * f_.B + b) * f_.P; }

  void first_product(int64_t t, const Place& place, const LiveRows<S>& rows) {
    const Range mine = part(first_.count, 1, place.unit, place.split.units);
    const Segment<S> segments[1] = {{rows.h, f_.P}};
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      const S *panel = first_.panel(q), *bias = first_.bias(q);
      panel_product<NV>(segments, rows.n, panel, bias, [&](int64_t i, const V(&sum)[NV]) {
        for (int u = 0; u < U; ++u) {
          const int64_t j = (q * U + u) * L;
          if (U > 1 && j >= f_.H) break;
          V gh[G1];
          for (int g = 0; g < G1; ++g) gh[g] = sum[u * G1 + g];
          unit(t, rows, i, Unit{j, f_.H - j}, gh);
        }
      });
    }
  }

  // The gates of one vector of units of one row.
  void unit(int64_t t, const LiveRows<S>& rows, int64_t i, Unit at, const V (&gh)[G1]) {
    const int64_t b = rows.b[i], H = f_.H;
    S* gates = gates_row(t, b) + at.j;
    V gx[G1], s[Cell::kStates], saved[Cell::kSaved];
    for (int g = 0; g < G1; ++g) gx[g] = V::load(gates + g * H, at.n);
    s[0] = Cell::kProjected ? V(S(0)) : V::load(rows.h[i] + at.j, at.n);
    if constexpr (kTwoStates) s[1] = V::load(rows.c[i] + at.j, at.n);
    if constexpr (Cell::kPhases == 2) {
      Cell::forward_reset(gx, gh, s, saved);
      if (f_.training) {
        for (int g = 0; g < 2; ++g) keep(saved[g], t, b, g, at);
      }
      saved[1].store(gates + H, at.n);  // the candidate reads z
      saved[Cell::kSavedU].store(extra_row(t, b) + at.j, at.n);
    } else {
      V s_new[Cell::kStates];
      Cell::forward(gx, gh, s, s_new, saved);
      if constexpr (kTwoStates) {
        S* c = f_.c ? f_.c + (t * f_.B + b) * H : f_.c_last + b * H;
        s_new[1].store(c + at.j, at.n);
      }
      S* out = Cell::kProjected ? extra_row(t, b) : y_row(t, b);
      s_new[0].store(out + at.j, at.n);
      if (kSavesGates && f_.training) {
        for (int g = 0; g < G; ++g) keep(saved[g], t, b, g, at);
        if constexpr (kHasExtra && !Cell::kProjected) {
          saved[G].store(extra_row(t, b) + at.j, at.n);
        }
      }
    }
  }

  // Gate g of one vector of units, for backward.
  void keep(V gate, int64_t t, int64_t b, int g, Unit at) const {
    if constexpr (std::is_same_v<S, float>) {
      if (f_.fixed) {
        gate.store_fixed(f_.fixed + (t * f_.B + b) * G * f_.H + g * f_.H + at.j, at.n);
        return;
      }
    }
    gate.store(gates_row(t, b) + g * f_.H + at.j, at.n);
  }

  // Reset-before: the candidate, from r ⊙ h. Projected: h' = W_hr·m.
  void second_product(int64_t t, const Place& place, const LiveRows<S>& rows) {
    const Range mine = part(second_.count, 1, place.unit, place.split.units);
    const Segment<S> segments[1] = {{rows.first, f_.H}};
    const int64_t outputs = second_outputs();
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      const S *panel = second_.panel(q), *bias = second_.bias(q);
      panel_product<kWide>(segments, rows.n, panel, bias, [&](int64_t i, const V(&sum)[kWide]) {
        for (int u = 0; u < kWide; ++u) {
          const int64_t j = (q * kWide + u) * L;
          if (j >= outputs) break;
          if constexpr (Cell::kProjected) {
            sum[u].store(y_row(t, rows.b[i]) + j, outputs - j);
          } else {
            candidate(t, rows, i, Unit{j, outputs - j}, sum[u]);
          }
        }
      });
    }
  }

  void candidate(int64_t t, const LiveRows<S>& rows, int64_t i, Unit at, const V& gh_n) {
    if constexpr (Cell::kPhases == 2) {
      const int64_t b = rows.b[i], H = f_.H;
      S* gates = gates_row(t, b) + at.j;
      V s[1] = {V::load(rows.h[i] + at.j, at.n)}, s_new[1], saved[Cell::kSaved];
      saved[1] = V::load(gates + H, at.n);
      const V gx_n = V::load(gates + 2 * H, at.n);
      Cell::forward_candidate(gx_n, gh_n, s, s_new, saved);
      s_new[0].store(y_row(t, b) + at.j, at.n);
      if (f_.training) keep(saved[2], t, b, 2, at);
    }
  }

  void keep_last(Range mine) {
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      const int64_t n = steps_.length(b);
      const int64_t t = f_.reverse ? 0 : n - 1;
      copy(f_.h_last + b * f_.P, n == 0 ? f_.h0 + b * f_.P : y_row(t, b), f_.P);
      if (kTwoStates && f_.c) {
        const S* c = n == 0 ? f_.c0 + b * f_.H : f_.c + (t * f_.B + b) * f_.H;
        copy(f_.c_last + b * f_.H, c, f_.H);
      }
    }
  }

  const Forward<S>& f_;
  Steps<S> steps_;
  Panels<S> first_, second_;
  S* zeros_ = nullptr;
  char* lists_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
