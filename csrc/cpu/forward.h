// Forward over T steps: for each, the recurrent product of the live rows with packed weights, the
// cell's gates on the sums while they are in registers, and the state written once.
#pragma once

#include <type_traits>

#include "cpu/in_place.h"
#include "cpu/input.h"
#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// A hidden unit of one row: where its values lie. Padding lanes of the last vector are cut by n.
struct Unit {
  int64_t j;  // first of the vector
  int64_t n;  // lanes that exist
};

template <class Cell, class S>
class ForwardPass {
  using V = Vec<S>;
  static constexpr int L = V::kLanes, G = Cell::kGates, N = kPhaseCount<Cell>;
  static constexpr bool kTwoStates = Cell::kStates == 2;
  // a cell that saves its output only has it in y
  static constexpr bool kSavesGates = !Cell::kSavesOutput;

 public:
  ForwardPass(const Forward<S>& f) : f_(f), rules_(rules_of(f)) {
    Arena arena(f.workspace);
    for (int p = 0; p < N && !f.in_place; ++p) {
      const Phase& phase = Cell::kPhases[p];
      const int64_t outputs = outputs_of(phase, f.H, f.P), width = panel_units(phase) * L;
      panels_[p] = Panels<S>(arena, divide_up(outputs, width) * width * values_of(phase),
                             width * values_of(phase), operand_width(phase, f.H, f.P), true);
    }
    zeros_ = arena.take<S>(f.H > f.P ? f.H : f.P);
    if (f.x) input_ = InputSteps<S>(arena, f, G * f.H);
    lists_ = arena.take<char>(0);
  }

  // Whether the team was dissolved.
  bool run() {
    return with_team(f_.split, [&](const Place& place) {
      pack(place);
      place.wait_for_all();
      scan(place);
    });
  }

 private:
  void pack(const Place& place) {
    if (place.id() == 0) fill_zero(zeros_, f_.H > f_.P ? f_.H : f_.P);
    if (f_.in_place) return;
    if (f_.x) input_.pack(place);
    unrolled<N>([&](auto p) { pack_phase<p>(place); });
  }

  // Gates that one hidden unit needs stand side by side in a panel.
  template <int p>
  void pack_phase(const Place& place) {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr bool kWhr = kPhase.matrix == Matrix::kWhr;
    const int64_t outputs = outputs_of(kPhase, f_.H, f_.P), K = operand_width(kPhase, f_.H, f_.P);
    const S* w = kWhr ? f_.w_hr : f_.w_hh + kPhase.first * f_.H * f_.P;
    const S* b = kWhr || !f_.b_hh ? nullptr : f_.b_hh + kPhase.first * f_.H;
    const Panels<S>& panels = panels_[p];
    const Range mine = place.share(panels.count);
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      pack_panel<panel_units(kPhase), values_of(kPhase)>(w, b, outputs, K, q, panels.panel(q),
                                                         panels.bias(q));
    }
  }

  void scan(const Place& place) {
    LiveRows<S> rows = live_rows_of<S>(place, lists_, f_.B);
    const Range mine = part(f_.B, 1, place.row, place.split.rows);
    if (kTwoStates && !f_.c && place.unit == 0) {
      copy(f_.c_last + mine.begin * f_.H, f_.c0 + mine.begin * f_.H, mine.size() * f_.H);
    }
    if (!place.wait()) return;
    for (int64_t step = 0; step < f_.T; ++step) {
      const int64_t t = rules_.time(step);
      rows.gates = gates_of(step, t, mine, place);
      collect(t, mine, place, rows);
      unrolled<N>([&](auto p) {
        if (place.gone) return;
        f_.in_place ? product_in_place<p>(t, place, rows) : product<p>(t, place, rows);
        place.wait();
      });
      if (place.gone) return;
    }
    if (place.unit == 0) keep_last(mine);
  }

  S* gates_of(int64_t step, int64_t t, Range mine, const Place& place) const {
    if (mine.size() == 0) return nullptr;
    if (!f_.x) return f_.gates + t * f_.B * G * f_.H;
    if (f_.in_place) return input_.row(0, mine, place, t);
    return input_.before(step, mine, place, [&](int64_t s) { return rules_.time(s); });
  }

  // The live rows of step t, and where their previous states are; dead ones are zeroed.
  void collect(int64_t t, Range mine, const Place& place, LiveRows<S>& rows) {
    rows.n = 0;
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      if (!rules_.alive(t, b)) {
        if (place.unit == 0) clear(t, b);
        continue;
      }
      const int64_t i = rows.n++;
      rows.b[i] = b;
      rows.h[i] = rules_.previous(f_.y, f_.h0, zeros_, t, b, f_.P);
      if constexpr (kTwoStates) {
        rows.c[i] = f_.c ? rules_.previous(f_.c, f_.c0, zeros_, t, b, f_.H)
                         : (rules_.reset(t, b) ? zeros_ : f_.c_last + b * f_.H);
      }
      if constexpr (kHasExtra<Cell>) rows.extra[i] = extra_row(t, b);
    }
  }

  void clear(int64_t t, int64_t b) {
    fill_zero(f_.y + (t * f_.B + b) * f_.P, f_.P);
    if (kTwoStates && f_.c) fill_zero(f_.c + (t * f_.B + b) * f_.H, f_.H);
    if (kHasExtra<Cell> && f_.training)
      fill_zero(extra_row(t, b), f_.H);  // weight gradients read it
  }

  S* extra_row(int64_t t, int64_t b) const {
    return f_.extra + (f_.training ? t * f_.B + b : b) * f_.H;
  }
  S* gates_row(const LiveRows<S>& rows, int64_t b) const { return rows.gates + b * G * f_.H; }
  S* y_row(int64_t t, int64_t b) const { return f_.y + (t * f_.B + b) * f_.P; }

  template <int p>
  void product(int64_t t, const Place& place, const LiveRows<S>& rows) {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr int U = panel_units(kPhase), n = values_of(kPhase);
    const Panels<S>& panels = panels_[p];
    const int64_t outputs = outputs_of(kPhase, f_.H, f_.P);
    const Segment<S> segment{kPhase.operand == kOperandH ? rows.h : rows.extra,
                             operand_width(kPhase, f_.H, f_.P)};
    const auto operands = [&](int64_t q) {
      return Operands<S, 1>{{segment}, panels.panel(q), panels.bias(q)};
    };
    panels_product<U * n, 1, S>(part(panels.count, 1, place.unit, place.split.units), rows.n,
                                operands, [&](int64_t q, int64_t i, const V(&sum)[U* n]) {
                                  for (int u = 0; u < U; ++u) {
                                    const int64_t j = (q * U + u) * L;
                                    if (U > 1 && j >= outputs) break;
                                    if constexpr (kPhase.matrix == Matrix::kWhr) {
                                      sum[u].store(y_row(t, rows.b[i]) + j, outputs - j);
                                    } else {
                                      V gh[n];
                                      for (int g = 0; g < n; ++g) gh[g] = sum[u * n + g];
                                      unit<p>(t, rows, i, Unit{j, outputs - j}, gh);
                                    }
                                  }
                                });
  }

  // The same, of x too, with weights as they lie.
  template <int p>
  __attribute__((noinline)) void product_in_place(int64_t t, const Place& place,
                                                  const LiveRows<S>& rows) {
    const int64_t outputs = outputs_of(Cell::kPhases[p], f_.H, f_.P);
    const S* x[kInPlaceRows];
    for (int64_t i = 0; f_.x && i < rows.n; ++i) x[i] = input_.x(t, rows.b[i]);
    const Range mine = part(divide_up(outputs, L), 1, place.unit, place.split.units);
    for (int64_t v = mine.begin; v < mine.end; ++v) {
      const Unit at{v * L, outputs - v * L};
      int64_t i = 0;
      for (; i + 4 <= rows.n; i += 4) outputs_in_place<p, 4>(t, rows, x, i, at);
      for (; i + 2 <= rows.n; i += 2) outputs_in_place<p, 2>(t, rows, x, i, at);
      for (; i < rows.n; ++i) outputs_in_place<p, 1>(t, rows, x, i, at);
    }
  }

  // Of rows [first, first + R).
  template <int p, int R>
  void outputs_in_place(int64_t t, const LiveRows<S>& rows, const S* const* x, int64_t first,
                        Unit at) {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr bool kWhr = kPhase.matrix == Matrix::kWhr;
    constexpr int n = values_of(kPhase);
    const int64_t K = operand_width(kPhase, f_.H, f_.P);
    const S* w = kWhr ? f_.w_hr : f_.w_hh;
    V sum[R][n];
    for (int g = 0; g < n; ++g) {
      const int64_t row = (kPhase.first + g) * f_.H + at.j;  // of W_hr there is one block
      V found[R];
      const V bias = kWhr || !f_.b_hh ? V(S(0)) : V::load(f_.b_hh + row, at.n);
      for (int r = 0; r < R; ++r) found[r] = bias;
      add_in_place<R>(Segment<S>{kPhase.operand == kOperandH ? rows.h : rows.extra, K}, first,
                      WeightRows<S>{w + (kWhr ? at.j : row) * K, K, at.n}, found);
      for (int r = 0; r < R; ++r) sum[r][g] = found[r];
      if constexpr (!kWhr) {
        if (!f_.x) continue;
        input_.template multiply_in_place<R>(x + first, row, at.n, found);
        for (int r = 0; r < R; ++r) found[r].store(gates_row(rows, rows.b[first + r]) + row, at.n);
      }
    }
    for (int r = 0; r < R; ++r) {
      if constexpr (kWhr) {
        sum[r][0].store(y_row(t, rows.b[first + r]) + at.j, at.n);
      } else {
        unit_apart<p>(t, rows, first + r, at, sum[r]);
      }
    }
  }

  template <int p>
  __attribute__((noinline)) void unit_apart(int64_t t, const LiveRows<S>& rows, int64_t i, Unit at,
                                            const V (&gh)[Cell::kPhases[p].gates]) {
    unit<p>(t, rows, i, at, gh);
  }

  // The pointwise part of a phase for one vector of units of one row. Inlined by force where a
  // product's sums are in registers.
  template <int p>
  __attribute__((always_inline)) inline void unit(int64_t t, const LiveRows<S>& rows, int64_t i,
                                                  Unit at, const V (&gh)[Cell::kPhases[p].gates]) {
    constexpr Phase kPhase = Cell::kPhases[p];
    const int64_t b = rows.b[i], H = f_.H;
    S* gates = gates_row(rows, b) + at.j;
    V gx[kPhase.gates], s[Cell::kStates], s_new[Cell::kStates], saved[Cell::kSaved];
    for (int g = 0; g < kPhase.gates; ++g) gx[g] = V::load(gates + (kPhase.first + g) * H, at.n);
    s[0] = Cell::kReadsH ? V::load(rows.h[i] + at.j, at.n) : V(S(0));
    if constexpr (kTwoStates) s[1] = V::load(rows.c[i] + at.j, at.n);
    unrolled<Cell::kSaved>([&](auto k) {
      if constexpr (has_bit(kPhase.needs, k)) {
        saved[k] = V::load(k < G ? gates + k * H : extra_row(t, b) + at.j, at.n);
      }
    });
    Cell::forward(At<p>{}, gx, gh, s, s_new, saved);
    if constexpr (p + 1 == kGatePhases<Cell>) {
      if constexpr (kTwoStates) {
        S* c = f_.c ? f_.c + (t * f_.B + b) * H : f_.c_last + b * H;
        s_new[1].store(c + at.j, at.n);
      }
      if constexpr (!kProjected<Cell>) s_new[0].store(y_row(t, b) + at.j, at.n);
    }
    if constexpr (kSavesGates) keep_saved<p>(saved, t, b, gates, at);
  }

  // What a phase saves: for backward, and what a later phase reads. `gates`: the unit's.
  template <int p>
  void keep_saved(const V (&saved)[Cell::kSaved], int64_t t, int64_t b, S* gates, Unit at) const {
    constexpr unsigned kSets = Cell::kPhases[p].sets, kNeeded = needed_after<Cell>(p);
    unrolled<G>([&](auto g) {
      if constexpr (has_bit(kSets, g)) {
        if (f_.training) keep(saved[g], t, b, g, gates, at);
      }
      if constexpr (has_bit(kSets & kNeeded, g)) {
        saved[g].store(gates + g * f_.H, at.n);
      }
    });
    if constexpr (has_bit(kSets, G)) {
      constexpr bool kRead = has_bit(kNeeded, G);
      if (kRead || f_.training) saved[G].store(extra_row(t, b) + at.j, at.n);
    }
  }

  // Gate g of one vector of units, for backward.
  void keep(V gate, int64_t t, int64_t b, int g, S* gates, Unit at) const {
    if constexpr (std::is_same_v<S, float> && kBoundedGates<Cell>) {
      if (f_.fixed) {
        gate.store_fixed(f_.fixed + (t * f_.B + b) * G * f_.H + g * f_.H + at.j, at.n);
        return;
      }
    }
    gate.store(gates + g * f_.H, at.n);
  }

  void keep_last(Range mine) {
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      const int64_t n = rules_.length(b), t = rules_.last(b);
      copy(f_.h_last + b * f_.P, n == 0 ? f_.h0 + b * f_.P : y_row(t, b), f_.P);
      if (kTwoStates && f_.c) {
        const S* c = n == 0 ? f_.c0 + b * f_.H : f_.c + (t * f_.B + b) * f_.H;
        copy(f_.c_last + b * f_.H, c, f_.H);
      }
    }
  }

  const Forward<S>& f_;
  const Rules rules_;
  Panels<S> panels_[N];
  InputSteps<S> input_;
  S* zeros_ = nullptr;
  char* lists_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
