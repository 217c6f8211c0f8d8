// Forward over T steps: for each, the recurrent product of the live rows with packed weights, the
// cell's gates on the sums while they are in registers, and the state written once.
//
// Of states that are stored in 16 bits there is a wide one as well, which the next step reads: they
// are rounded for whoever sees them, and for products of pairs, but do not lose digits on the way.
#pragma once

#include <type_traits>

#include "cpu/in_place.h"
#include "cpu/input.h"
#include "cpu/tile_product.h"
#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// A hidden unit of one row: where its values lie. Padding lanes of the last vector are cut by n.
struct Unit {
  int64_t j;  // first of the vector
  int64_t n;  // lanes that exist
};

template <class Cell, class X>
class ForwardPass {
  using S = Wide<X>;
  using E = OperandOf<X>;
  using Rows = LiveRows<E, S>;
  using V = Vec<S>;
  static constexpr int L = V::kLanes, G = Cell::kGates, N = kPhaseCount<Cell>;
  static constexpr bool kTwoStates = Cell::kStates == 2;
  // a cell that saves its output only has it in y
  static constexpr bool kSavesGates = !Cell::kSavesOutput;
  // wide states of their own, and which: h is read by the cell or multiplied, saved[G] multiplied
  static constexpr bool kKeeps = kNarrow<X>, kPairs = kKeeps && std::is_same_v<E, X>;
  static constexpr bool kKeepsH = kKeeps && (Cell::kReadsH || !kPairs);
  static constexpr bool kKeepsExtra = kKeeps && !kPairs && kHasExtra<Cell> && N > 1;

 public:
  ForwardPass(const Forward<X>& f) : f_(f), rules_(rules_of(f)) {
    Arena arena(f.workspace);
    for (int p = 0; p < N && !f.in_place; ++p) {
      const Phase& phase = Cell::kPhases[p];
      const int64_t outputs = outputs_of(phase, f.H, f.P), width = panel_units(phase) * L;
      panels_[p] = Panels<E>(arena, divide_up(outputs, width) * width * values_of(phase),
                             width * values_of(phase), operand_width(phase, f.H, f.P), true);
    }
    zeros_ = arena.take<X>(zeros());
    if (kKeeps) wide_zeros_ = arena.take<S>(zeros());
    if (kKeepsH) h_ = arena.take<S>(2 * f.B * f.P);
    if (kKeeps && kTwoStates) c_ = arena.take<S>(f.B * f.H);
    if (kKeepsExtra) extra_ = arena.take<S>(f.B * f.H);
    if (f.x) input_ = InputSteps<X>(arena, f, G * f.H);
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
  int64_t zeros() const { return f_.H > f_.P ? f_.H : f_.P; }

  void pack(const Place& place) {
    if (place.id() == 0) {
      fill_zero(zeros_, zeros());
      if constexpr (kKeeps) fill_zero(wide_zeros_, zeros());
    }
    if (f_.in_place) {
      if (f_.x && place.id() == 0) input_.convert_first();
      return;
    }
    if (f_.x) input_.pack(place);
    unrolled<N>([&](auto p) { pack_phase<p>(place); });
  }

  // Gates that one hidden unit needs stand side by side in a panel.
  template <int p>
  void pack_phase(const Place& place) {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr bool kWhr = kPhase.matrix == Matrix::kWhr;
    const int64_t outputs = outputs_of(kPhase, f_.H, f_.P), K = operand_width(kPhase, f_.H, f_.P);
    const X* w = kWhr ? f_.w_hr : f_.w_hh + kPhase.first * f_.H * f_.P;
    const X* b = kWhr || !f_.b_hh ? nullptr : f_.b_hh + kPhase.first * f_.H;
    const Panels<E>& panels = panels_[p];
    const Range mine = place.share(panels.count);
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      pack_panel<panel_units(kPhase), values_of(kPhase), E>(w, b, outputs, K, q, panels.panel(q),
                                                            panels.bias(q));
    }
  }

  void scan(const Place& place) {
    Rows rows = live_rows_of<E, S>(place, lists_, f_.B);
    const Range mine = part(f_.B, 1, place.row, place.split.rows);
    if (place.unit == 0) begin(mine);
    if (!place.wait()) return;
    for (int64_t step = 0; step < f_.T; ++step) {
      const int64_t t = rules_.time(step);
      rows.gates = gates_of(step, t, mine, place);
      collect(step, t, mine, place, rows);
      unrolled<N>([&](auto p) {
        if (place.gone) return;
        f_.in_place ? product_in_place<p>(step, t, place, rows) : product<p>(step, t, place, rows);
        place.wait();
      });
      if (place.gone) return;
    }
    if (place.unit == 0) keep_last(mine);
  }

  // What states of their own begin with.
  void begin(Range mine) {
    const int64_t h = mine.begin * f_.P, c = mine.begin * f_.H;
    if constexpr (kKeepsH) {
      for (int64_t step = 0; step < 2; ++step)
        convert(wide_h(step, 0) + h, f_.h0 + h, mine.size() * f_.P);
    }
    if constexpr (kTwoStates) {
      if constexpr (kKeeps) {
        convert(c_ + c, f_.c0 + c, mine.size() * f_.H);
      } else if (!f_.c) {
        copy(f_.c_last + c, f_.c0 + c, mine.size() * f_.H);
      }
    }
  }

  // The wide h of sequence b before a step; the next step's is the other one.
  S* wide_h(int64_t step, int64_t b) const { return h_ + (step % 2 * f_.B + b) * f_.P; }

  S* gates_of(int64_t step, int64_t t, Range mine, const Place& place) const {
    if (mine.size() == 0) return nullptr;
    if (!f_.x) return f_.gates + t * f_.B * G * f_.H;
    if (f_.in_place) return input_.row(0, mine, place, t);
    return input_.before(step, mine, place, [&](int64_t s) { return rules_.time(s); });
  }

  // The live rows of step t, and where their previous states are; dead ones are zeroed.
  void collect(int64_t step, int64_t t, Range mine, const Place& place, Rows& rows) {
    rows.n = 0;
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      if (!rules_.alive(t, b)) {
        if (place.unit == 0) clear(t, b);
        continue;
      }
      const int64_t i = rows.n++;
      rows.b[i] = b;
      if constexpr (!kKeeps || kPairs) {
        rows.factor[i] = rules_.previous(f_.y, f_.h0, zeros_, t, b, f_.P);
      }
      if constexpr (kKeeps) {
        const bool reset = rules_.reset(t, b);
        if (kKeepsH) rows.h[i] = reset ? wide_zeros_ : wide_h(step, b);
        if constexpr (!kPairs) rows.factor[i] = rows.h[i];
        if (kTwoStates) rows.c[i] = reset ? wide_zeros_ : c_ + b * f_.H;
      } else {
        rows.h[i] = rows.factor[i];
        if constexpr (kTwoStates) {
          rows.c[i] = f_.c ? rules_.previous(f_.c, f_.c0, zeros_, t, b, f_.H)
                           : (rules_.reset(t, b) ? zeros_ : f_.c_last + b * f_.H);
        }
      }
      if constexpr (kHasExtra<Cell>) {
        if constexpr (kKeepsExtra) {
          rows.extra[i] = extra_ + b * f_.H;
        } else if constexpr (std::is_same_v<E, X>) {
          rows.extra[i] = extra_row(t, b);
        }
      }
    }
  }

  void clear(int64_t t, int64_t b) {
    fill_zero(f_.y + (t * f_.B + b) * f_.P, f_.P);
    if (kTwoStates && f_.c) fill_zero(f_.c + (t * f_.B + b) * f_.H, f_.H);
    if (kHasExtra<Cell> && f_.training)
      fill_zero(extra_row(t, b), f_.H);  // weight gradients read it
  }

  X* extra_row(int64_t t, int64_t b) const {
    return f_.extra + (f_.training ? t * f_.B + b : b) * f_.H;
  }
  S* gates_row(const Rows& rows, int64_t b) const { return rows.gates + b * G * f_.H; }
  X* y_row(int64_t t, int64_t b) const { return f_.y + (t * f_.B + b) * f_.P; }

  template <int p>
  void product(int64_t step, int64_t t, const Place& place, const Rows& rows) {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr int U = panel_units(kPhase), n = values_of(kPhase);
    const Panels<E>& panels = panels_[p];
    const Segment<E> segment{kPhase.operand == kOperandH ? rows.factor : rows.extra,
                             operand_width(kPhase, f_.H, f_.P)};
    const int64_t vectors = divide_up(outputs_of(kPhase, f_.H, f_.P), L);
    const auto operands = [&](int64_t q) {
      return Operands<E, 1>{
          {segment}, panels.panel(q), panels.bias(q), panel_vectors(vectors, q, U) * n};
    };
    const auto done = [&](int64_t q, int64_t i, const V* sum) {
      finish<p>(step, t, rows, i, q * U * L, sum);
    };
    step_product<U * n, U, 1, E>(
        f_.B, part(panels.count, 1, place.unit, place.split.units), rows.n, operands, done,
        [&](int64_t q, int64_t first, int64_t count) { fetch<p>(rows, q * U * L, first, count); });
  }

  // What is made of the sums of a panel, whose units begin at j, of one row. One piece of code for
  // all rows, with all that it calls in it: out of line each function's vectors would go through
  // memory, and inlined where it is called the compiler could fuse multiply-adds differently there.
  template <int p>
  __attribute__((noinline, flatten)) void finish(int64_t step, int64_t t, const Rows& rows,
                                                 int64_t i, int64_t j, const V* sum) const {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr int U = panel_units(kPhase), n = values_of(kPhase);
    const int64_t outputs = outputs_of(kPhase, f_.H, f_.P);
    for (int u = 0; u < U && j < outputs; ++u, j += L) {
      if constexpr (kPhase.matrix == Matrix::kWhr) {
        keep_h(sum[u], step, t, rows.b[i], Unit{j, outputs - j});
      } else {
        V gh[n];
        for (int g = 0; g < n; ++g) gh[g] = sum[u * n + g];
        unit<p>(step, t, rows, i, Unit{j, outputs - j}, gh);
      }
    }
  }

  // What the pointwise part reads of gx, of some rows from unit j on: a large product may have made
  // it, long ago. Short sums are over before it would be here.
  template <int p>
  void fetch(const Rows& rows, int64_t j, int64_t first, int64_t count) const {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr int64_t kShortest = 128;
    if (f_.x || f_.H < kShortest) return;
    for (int64_t i = first; i < first + count; ++i) {
      const S* gates = gates_row(rows, rows.b[i]) + j;
      for (int g = 0; g < kPhase.gates; ++g) {
        const S* gate = gates + (kPhase.first + g) * f_.H;
        for (int v = 0; v < panel_units(kPhase); ++v) __builtin_prefetch(gate + v * L);
        __builtin_prefetch(gate + panel_units(kPhase) * L - 1);
      }
    }
  }

  // The same, of x too, with weights as they lie.
  template <int p>
  __attribute__((noinline)) void product_in_place(int64_t step, int64_t t, const Place& place,
                                                  const Rows& rows) {
    const int64_t outputs = outputs_of(Cell::kPhases[p], f_.H, f_.P);
    const E* x[kInPlaceRows];
    for (int64_t i = 0; f_.x && i < rows.n; ++i) x[i] = input_.x(t, rows.b[i]);
    const Range mine = part(divide_up(outputs, L), 1, place.unit, place.split.units);
    for (int64_t v = mine.begin; v < mine.end; ++v) {
      const Unit at{v * L, outputs - v * L};
      int64_t i = 0;
      for (; i + 4 <= rows.n; i += 4) outputs_in_place<p, 4>(step, t, rows, x, i, at);
      for (; i + 2 <= rows.n; i += 2) outputs_in_place<p, 2>(step, t, rows, x, i, at);
      for (; i < rows.n; ++i) outputs_in_place<p, 1>(step, t, rows, x, i, at);
    }
  }

  // Of rows [first, first + R).
  template <int p, int R>
  void outputs_in_place(int64_t step, int64_t t, const Rows& rows, const E* const* x, int64_t first,
                        Unit at) {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr bool kWhr = kPhase.matrix == Matrix::kWhr;
    constexpr int n = values_of(kPhase);
    const int64_t K = operand_width(kPhase, f_.H, f_.P);
    const X* w = kWhr ? f_.w_hr : f_.w_hh;
    V sum[R][n];
    for (int g = 0; g < n; ++g) {
      const int64_t row = (kPhase.first + g) * f_.H + at.j;  // of W_hr there is one block
      V found[R];
      const V bias = kWhr || !f_.b_hh ? V(S(0)) : read(f_.b_hh + row, at.n);
      for (int r = 0; r < R; ++r) found[r] = bias;
      add_in_place<R>(Segment<E>{kPhase.operand == kOperandH ? rows.factor : rows.extra, K}, first,
                      WeightRows<X>{w + (kWhr ? at.j : row) * K, K, at.n}, found);
      for (int r = 0; r < R; ++r) sum[r][g] = found[r];
      if constexpr (!kWhr) {
        if (!f_.x) continue;
        input_.template multiply_in_place<R>(x + first, row, at.n, found);
        for (int r = 0; r < R; ++r) found[r].store(gates_row(rows, rows.b[first + r]) + row, at.n);
      }
    }
    for (int r = 0; r < R; ++r) {
      if constexpr (kWhr) {
        keep_h(sum[r][0], step, t, rows.b[first + r], at);
      } else {
        unit_apart<p>(step, t, rows, first + r, at, sum[r]);
      }
    }
  }

  template <int p>
  __attribute__((noinline, flatten)) void unit_apart(int64_t step, int64_t t, const Rows& rows,
                                                     int64_t i, Unit at,
                                                     const V (&gh)[Cell::kPhases[p].gates]) const {
    unit<p>(step, t, rows, i, at, gh);
  }

  // The pointwise part of a phase for one vector of units of one row.
  template <int p>
  void unit(int64_t step, int64_t t, const Rows& rows, int64_t i, Unit at,
            const V (&gh)[Cell::kPhases[p].gates]) const {
    constexpr Phase kPhase = Cell::kPhases[p];
    const int64_t b = rows.b[i], H = f_.H;
    S* gates = gates_row(rows, b) + at.j;
    V gx[kPhase.gates], s[Cell::kStates], s_new[Cell::kStates], saved[Cell::kSaved];
    for (int g = 0; g < kPhase.gates; ++g) gx[g] = V::load(gates + (kPhase.first + g) * H, at.n);
    s[0] = Cell::kReadsH ? V::load(rows.h[i] + at.j, at.n) : V(S(0));
    if constexpr (kTwoStates) s[1] = V::load(rows.c[i] + at.j, at.n);
    unrolled<Cell::kSaved>([&](auto k) {
      if constexpr (has_bit(kPhase.needs, k)) {
        static_assert(k < G, "saved[G] is multiplied only");
        saved[k] = V::load(gates + k * H, at.n);
      }
    });
    Cell::forward(At<p>{}, gx, gh, s, s_new, saved);
    if constexpr (p + 1 == kGatePhases<Cell>) {
      if constexpr (kTwoStates) {
        if constexpr (kKeeps) s_new[1].store(c_ + b * H + at.j, at.n);
        X* c = f_.c ? f_.c + (t * f_.B + b) * H : kKeeps ? nullptr : f_.c_last + b * H;
        if (c) write(s_new[1], c + at.j, at.n);
      }
      if constexpr (!kProjected<Cell>) keep_h(s_new[0], step, t, b, at);
    }
    if constexpr (kSavesGates) keep_saved<p>(saved, t, b, gates, at);
  }

  // A vector of the output of a step.
  void keep_h(V h, int64_t step, int64_t t, int64_t b, Unit at) const {
    write(h, y_row(t, b) + at.j, at.n);
    if constexpr (kKeepsH) h.store(wide_h(step + 1, b) + at.j, at.n);
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
      if constexpr (kRead && kKeepsExtra) saved[G].store(extra_ + b * f_.H + at.j, at.n);
      if ((kRead && !kKeepsExtra) || f_.training) write(saved[G], extra_row(t, b) + at.j, at.n);
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
      if constexpr (kTwoStates && kKeeps) {
        convert(f_.c_last + b * f_.H, c_ + b * f_.H, f_.H);
      } else if (kTwoStates && f_.c) {
        const X* c = n == 0 ? f_.c0 + b * f_.H : f_.c + (t * f_.B + b) * f_.H;
        copy(f_.c_last + b * f_.H, c, f_.H);
      }
    }
  }

  const Forward<X>& f_;
  const Rules rules_;
  Panels<E> panels_[N];
  InputSteps<X> input_;
  X* zeros_ = nullptr;
  S *wide_zeros_ = nullptr, *h_ = nullptr, *c_ = nullptr, *extra_ = nullptr;
  char* lists_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
