// Steps of layers whose packed weights and states are held. A layer takes a chunk of steps before
// the next one begins: the input's product for all of them at once, then step by step, for each
// phase of the cell, the recurrent product and what is pointwise after it, each thread for its own
// panels. Sums pass through the scratch, so that no product is compiled for each cell.
#pragma once

#include "cpu/stream/product.h"
#include "cpu/team.h"

namespace rnnfast::cpu::RNNFAST_ISA::stream {

using rnnfast::cpu::stream::Layer;
using rnnfast::cpu::stream::Own;
using rnnfast::cpu::stream::Run;
using rnnfast::cpu::stream::Shape;
using rnnfast::cpu::stream::Weights;

constexpr int kMostPhases = 2;

// The matrices of a layer, by phase, at the beginning of what is packed of it; there is no W_ih for that of W_hr. Of a cell that is compiled
// at run time the first W_ih only.
template <class S>
struct Matrices {
  int phases = 0;
  Matrix<S> ih[kMostPhases], hh[kMostPhases];

  Matrices(Arena& arena, const Shape& shape, Storage storage) {
    if (shape.own_gates > 0) {
      ih[0] = take_matrix<S>(arena, storage, shape.own_gates, 1, shape.I);
      return;
    }
    const CellInfo& cell = cell_info(shape.cell);
    phases = cell.phase_count;
    for (int p = 0; p < phases; ++p) {
      const Phase& phase = cell.phases[p];
      const int64_t outputs = outputs_of(phase, shape.H, shape.P);
      const int values = values_of(phase);
      if (phase.matrix == rnnfast::Matrix::kWhh)
        ih[p] = take_matrix<S>(arena, storage, outputs, values, shape.I);
      hh[p] =
          take_matrix<S>(arena, storage, outputs, values, operand_width(phase, shape.H, shape.P));
    }
  }
};

template <class S>
void pack(const Shape& shape, Storage storage, const Weights<S>& w, void* packed) {
  Arena arena(packed);
  Matrices<S>& m = *arena.take<Matrices<S>>(1);
  m = Matrices<S>(arena, shape, storage);
  if (shape.own_gates > 0) return pack_matrix<S>(storage, w.w_ih, w.b_ih, 0, m.ih[0]);
  const CellInfo& cell = cell_info(shape.cell);
  for (int p = 0; p < m.phases; ++p) {
    const Phase& phase = cell.phases[p];
    if (phase.matrix == rnnfast::Matrix::kWhr) {
      pack_matrix<S>(storage, w.w_hr, nullptr, 0, m.hh[p]);
      continue;
    }
    pack_matrix<S>(storage, w.w_ih, w.b_ih, phase.first, m.ih[p]);
    pack_matrix<S>(storage, w.w_hh, w.b_hh, phase.first, m.hh[p]);
  }
}

// What a layer needs beside its weights and states: sums of x's product for a chunk, of h's for a
// step, and what one phase leaves for the next. The layers share it.
template <class S>
struct Scratch {
  S *x[kMostPhases] = {}, *h = nullptr, *saved = nullptr;

  Scratch(Arena& arena, const Matrices<S>& m, const Shape& shape, int64_t B, int64_t chunk) {
    int64_t widest = 0;
    for (int p = 0; p < kMostPhases; ++p) {
      x[p] = arena.template take<S>(chunk * B * (m.ih[p].outputs > 0 ? m.ih[p].columns : 0));
      const int64_t columns = m.hh[p].outputs > 0 ? m.hh[p].columns : 0;
      if (columns > widest) widest = columns;
    }
    h = arena.template take<S>(B * widest);
    const int64_t saved_values = m.phases > 1 ? cell_info(shape.cell).saved : 0;
    saved = arena.template take<S>(saved_values * B * shape.H);
  }
};

// What a chunk of a layer reads and writes: element (t, b) is a row.
template <class S>
struct Chunk {
  int64_t T;
  const S* x;
  const int64_t* tokens;
  int64_t x_step, x_row;
  S* y;
  int64_t y_step, y_row;
};

// This thread's part of x's product, for all steps of a chunk.
template <class S>
void multiply_input(const Place& place, const Run<S>& run, const Matrix<S>& m,
                    const Chunk<S>& chunk, S* to) {
  const Range mine = place.share(m.count);
  const int64_t columns = m.columns, width = m.width, B = run.B;
  if (chunk.tokens) {
    for (int64_t i = 0; i < chunk.T * B; ++i) {
      const int64_t token = chunk.tokens[i / B * chunk.x_step + i % B * chunk.x_row];
      for (int64_t c = mine.begin * width; c < mine.end * width; c += Vec<S>::kLanes)
        column_of<S>(run.storage, m, token, c).store(to + i * columns + c);
    }
    return;
  }
  if (B == 1 || chunk.x_step == B * chunk.x_row) {
    const int64_t stride = B == 1 ? chunk.x_step : chunk.x_row;
    return multiply<true>(run.storage, m, mine, Rows<S>{chunk.x, stride, chunk.T * B}, to);
  }
  for (int64_t t = 0; t < chunk.T; ++t) {
    multiply<true>(run.storage, m, mine, Rows<S>{chunk.x + t * chunk.x_step, chunk.x_row, B},
                   to + t * B * columns);
  }
}

// A chunk of a layer with one of our cells.
template <class Cell, class S>
class LayerPass {
  using V = Vec<S>;
  static constexpr int L = V::kLanes, N = kPhaseCount<Cell>;
  static constexpr bool kTwoStates = Cell::kStates == 2;

 public:
  LayerPass(const Run<S>& run, const Layer<S>& layer, const Matrices<S>& m, const Scratch<S>& s,
            const Chunk<S>& chunk, const Place& place)
      : run_(run), layer_(layer), m_(m), s_(s), chunk_(chunk), place_(place) {}

  void steps(int slot) {
    unrolled<N>([&](auto p) {
      if constexpr (Cell::kPhases[p].matrix == rnnfast::Matrix::kWhh)
        multiply_input(place_, run_, m_.ih[p], chunk_, s_.x[p]);
    });
    for (int64_t t = 0; t < chunk_.T; ++t, slot ^= 1) {
      unrolled<N>([&](auto p) {
        if (place_.gone) return;
        phase<p>(t, slot);
        place_.wait();
      });
      if (place_.gone) return;
    }
  }

 private:
  template <int p>
  void phase(int64_t t, int slot) {
    constexpr Phase kPhase = Cell::kPhases[p];
    const Matrix<S>& m = m_.hh[p];
    const Range mine = place_.share(m.count);
    const int64_t B = run_.B, width = m.width;
    const S* operand = kPhase.operand == kOperandH ? layer_.h[slot] : saved(Cell::kGates, 0);
    multiply<false>(run_.storage, m, mine, Rows<S>{operand, m.K, B}, s_.h);
    for (int64_t b = 0; b < B; ++b) {
      const S* gh = s_.h + b * m.columns;
      for (int64_t q = mine.begin; q < mine.end; ++q) panel<p>(t, b, slot, q, gh + q * width);
      if (p + 1 == N && run_.round) round(t, b, m, mine);
    }
  }

  template <int p>
  void panel(int64_t t, int64_t b, int slot, int64_t q, const S* gh) {
    constexpr Phase kPhase = Cell::kPhases[p];
    constexpr int U = panel_units(kPhase), n = values_of(kPhase);
    for (int u = 0; u < U; ++u) {
      const int64_t j = (q * U + u) * L, lanes = m_.hh[p].outputs - j;
      if (U > 1 && lanes <= 0) break;
      if constexpr (kPhase.matrix == rnnfast::Matrix::kWhr) {
        output(V::load(gh + u * L), t, b, slot, j, lanes);
      } else {
        const S* gx = s_.x[p] + (t * run_.B + b) * m_.ih[p].columns + (q * U + u) * n * L;
        unit<p>(t, b, slot, j, lanes, gx, gh + u * n * L);
      }
    }
  }

  // The pointwise part of a phase for one vector of units of one row.
  template <int p>
  void unit(int64_t t, int64_t b, int slot, int64_t j, int64_t n, const S* x, const S* h) {
    constexpr Phase kPhase = Cell::kPhases[p];
    V gx[kPhase.gates], gh[kPhase.gates], s[Cell::kStates], s_new[Cell::kStates];
    V found[Cell::kSaved];
    for (int g = 0; g < kPhase.gates; ++g) gx[g] = V::load(x + g * L), gh[g] = V::load(h + g * L);
    s[0] = Cell::kReadsH ? V::load(layer_.h[slot] + b * layer_.shape.H + j, n) : V(S(0));
    if constexpr (kTwoStates) s[1] = V::load(layer_.c + b * layer_.shape.H + j, n);
    unrolled<Cell::kSaved>([&](auto k) {
      if constexpr (has_bit(kPhase.needs, k)) found[k] = V::load(saved(k, b) + j, n);
    });
    Cell::forward(At<p>{}, gx, gh, s, s_new, found);
    if constexpr (p + 1 == kGatePhases<Cell>) {
      if constexpr (kTwoStates) s_new[1].store(layer_.c + b * layer_.shape.H + j, n);
      if constexpr (!kProjected<Cell>) output(s_new[0], t, b, slot, j, n);
    }
    unrolled<Cell::kSaved>([&](auto k) {
      if constexpr (has_bit(kPhase.sets & needed_after<Cell>(p), k))
        found[k].store(saved(k, b) + j, n);
    });
  }

  void output(V h, int64_t t, int64_t b, int slot, int64_t j, int64_t n) {
    h.store(layer_.h[slot ^ 1] + b * layer_.shape.P + j, n);
    h.store(y_row(t, b) + j, n);
  }

  void round(int64_t t, int64_t b, const Matrix<S>& m, Range mine) {
    const int64_t units = m.units * L, begin = mine.begin * units;
    const int64_t end = least(mine.end * units, m.outputs);
    if (begin < end) run_.round(y_row(t, b) + begin, end - begin);
  }

  S* y_row(int64_t t, int64_t b) const { return chunk_.y + t * chunk_.y_step + b * chunk_.y_row; }
  S* saved(int k, int64_t b) const { return s_.saved + (k * run_.B + b) * layer_.shape.H; }

  const Run<S>& run_;
  const Layer<S>& layer_;
  const Matrices<S>& m_;
  const Scratch<S>& s_;
  const Chunk<S>& chunk_;
  const Place& place_;
};

// A chunk of a layer whose loop was compiled at run time. One thread; the loop has its own.
template <class S>
void own_steps(const Run<S>& run, const Layer<S>& layer, const Matrix<S>& m, S* sums,
               const Chunk<S>& chunk, const Place& place) {
  const Own<S>& own = *layer.own;
  const int64_t B = run.B, H = layer.shape.H;
  multiply_input(place, run, m, chunk, sums);
  for (int64_t i = 0; i < chunk.T * B; ++i)
    copy(own.gx + i * own.width, sums + i * m.columns, m.outputs);
  own.arguments->T = chunk.T;
  own.forward(own.arguments);
  own.arguments->packed = 1;
  for (int64_t i = 0; i < chunk.T * B; ++i) {
    S* y = chunk.y + i / B * chunk.y_step + i % B * chunk.y_row;
    copy(y, own.y + i * H, H);
    if (run.round) run.round(y, H);
  }
}

template <class S>
void layer_steps(const Run<S>& run, const Layer<S>& layer, const Chunk<S>& chunk, void* scratch,
                 int slot, const Place& place) {
  Arena room(scratch);
  const Matrices<S>& m = *static_cast<const Matrices<S>*>(layer.packed);
  const Scratch<S> s(room, m, layer.shape, run.B, run.chunk);
  if (layer.own) return own_steps(run, layer, m.ih[0], s.x[0], chunk, place);
  switch (layer.shape.cell) {
#define RNNFAST_STREAM_CASE(type, name) \
  case CellId::k##type:                 \
    return LayerPass<type<Vec<S>>, S>(run, layer, m, s, chunk, place).steps(slot);
    RNNFAST_CELLS(RNNFAST_STREAM_CASE)
#undef RNNFAST_STREAM_CASE
  }
}

// Outputs of the layers below the last, for a chunk, in turn.
template <class S>
struct Between {
  int64_t width = 0;
  S* y[2] = {};

  Between(Arena& arena, int64_t width, int64_t rows) : width(width) {
    for (S*& rows_of : y) rows_of = arena.template take<S>(rows * width);
  }
};

template <class S, class Of>
int64_t widest_output(int64_t count, const Of& shape) {
  int64_t widest = 0;
  for (int64_t l = 0; l + 1 < count; ++l) {
    if (shape(l).P > widest) widest = shape(l).P;
  }
  return widest;
}

template <class S>
int64_t scratch_bytes(const Shape* shapes, int64_t count, Storage storage, int64_t B,
                      int64_t chunk) {
  Arena arena(nullptr);
  const auto shape = [&](int64_t l) -> const Shape& { return shapes[l]; };
  Between<S>(arena, widest_output<S>(count, shape), B * chunk);
  const int64_t between = reinterpret_cast<int64_t>(arena.take<char>(0));
  int64_t most = 0;
  for (int64_t l = 0; l < count; ++l) {
    Arena weights(nullptr), room(nullptr);
    const Matrices<S> m(weights, shapes[l], storage);
    const Scratch<S> s(room, m, shapes[l], B, chunk);
    const int64_t bytes = reinterpret_cast<int64_t>(room.take<char>(0));
    if (bytes > most) most = bytes;
  }
  return between + most;
}

template <class S>
int64_t packed_bytes(const Shape& shape, Storage storage) {
  Arena arena(nullptr);
  arena.take<Matrices<S>>(1);
  const Matrices<S> m(arena, shape, storage);
  return reinterpret_cast<int64_t>(arena.take<char>(0));
}

template <class S>
void run(const Run<S>& r) {
  const auto shape = [&](int64_t l) -> const Shape& { return r.layers[l].shape; };
  Arena arena(r.scratch);
  const Between<S> between(arena, widest_output<S>(r.count, shape), r.B * r.chunk);
  void* scratch = arena.take<char>(0);
  const auto body = [&](const Place& place) {
    const int64_t width = between.width, step = r.B * width;
    int slot = r.slot;
    for (int64_t t = 0; t < r.T; t += r.chunk) {
      const int64_t T = least(r.T - t, r.chunk);
      for (int64_t l = 0; l < r.count; ++l) {
        Chunk<S> chunk{T,     between.y[(l + 1) & 1], nullptr, step,
                       width, between.y[l & 1],       step,    width};
        if (l == 0) {
          chunk.x = r.x ? r.x + t * r.x_step : nullptr;
          chunk.tokens = r.tokens ? r.tokens + t * r.x_step : nullptr;
          chunk.x_step = r.x_step, chunk.x_row = r.x_row;
        }
        if (l + 1 == r.count) {
          chunk.y = r.y + t * r.y_step, chunk.y_step = r.y_step, chunk.y_row = r.y_row;
        }
        layer_steps(r, r.layers[l], chunk, scratch, slot, place);
        if (place.gone) return;
      }
      slot ^= static_cast<int>(T & 1);
    }
  };
  if (r.threads > 1) {
    with_team({1, r.threads}, body);
    return;
  }
  Barrier none;  // a team has many of them, which take longer to make than a small step
  body(Place{0, 0, Split{}, &none, &none});
}

}  // namespace rnnfast::cpu::RNNFAST_ISA::stream
