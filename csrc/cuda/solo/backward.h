// The resident backward kernel (BPTT): one launch for all T steps, with W_hhᵀ held as forward holds
// W_hh.
//
// A step, from the last to the first: the gate math gives the gradients of the gates, each in the
// thread that owns the unit; they go to the others as operands; then, while others get there, to
// memory (D of layout.h), and what the next step needs is loaded; one barrier; W_hhᵀ times the
// operands gives the gradient of h before this step. (A cell of two phases does this twice.) The
// gradients of weights and input are products with D over all steps, outside.
//
// Gradients of h and c are carried in fp32. A sequence that ended hands those of its final state
// through.
#pragma once

#include "cuda/device/arguments.h"
#include "cuda/device/cell_steps.h"
#include "cuda/device/fragments.h"
#include "cuda/device/mma.h"
#include "cuda/device/saved.h"
#include "cuda/device/sequences.h"
#include "cuda/solo/shapes.h"
#include "cuda/solo/team.h"
#include "cuda/solo/weights.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
struct BackwardScan {
  using C = Cell<Real>;
  using S = typename Mma::Storage;
  using Operand = typename Mma::Operand;
  static constexpr CellId kCell = kIdOf<Cell>;
  static constexpr int kOctets = 2, kTileUnits = 16;
  static constexpr int kSlots = Slots<Cell>::kSlots, kG = C::kGates;
  static constexpr bool kTwoPhases = kGatePhases<C> == 2;
  static_assert(may_be_resident<C>(), "no kernel keeps the weights of a cell with such phases");
  static constexpr bool kHasCell = C::kStates > 1;
  static constexpr int kChains = kTiles == 1 ? 4 : (kTiles == 2 ? 2 : 1);
  static constexpr int kValues = kSlabBytes / int(sizeof(Operand));
  using Gates = SlotVector<S, kSlots>;
  using Stored = Packed<S, kSlots>;
  using W = Weights<Mma, kTiles, 1, kHeld>;

  const BackwardArgs& args;
  const BackwardDirection& d;
  Sequences sequences;
  W w;
  unsigned char* rows;
  int stride;
  int first_slabs;  // of the first phase, where there are two
  float scale, unscale;
  // What moves from step to step is added to, so that nothing of it is computed twice.
  // Bytes from `rows` on: where the lane reads the operands of a step, where it writes those of its
  // first unit and sequence; from there to the other set.
  int reads, writes, flip;
  int64_t at[2];     // of the thread's sequences: where the step at hand has its first unit
  int64_t first[2];  // and the state before the first step
  const uint8_t* reset_at[2] = {nullptr, nullptr};  // of the step that is fetched next
  int64_t row_step, reset_step;                     // from a step to the next one
  // Not 0: the step at hand, and each of the two before it, began with a state of 0.
  int reset[2] = {0, 0}, reset_before[2] = {0, 0}, reset_fetched[2] = {0, 0};

  // Of the thread's units [tile][octet] and sequences: the gradient of the state after the step at
  // hand (but for what its outputs add), or before it; what was saved, and then D; what else the
  // step reads.
  Real dh[kTiles][kOctets][2], dc[kTiles][kOctets][2];
  Stored gates[kTiles][kOctets][2];
  S dy[kTiles][kOctets][2], h_before[kTiles][kOctets][2], dc_out[kTiles][kOctets][2];
  float c_before[kTiles][kOctets][2];

  RNNFAST_DEVICE BackwardScan(const BackwardArgs& a, const BackwardDirection& direction,
                              unsigned char* shared)
      : args(a), d(direction), sequences(a.T, a.B, a.H, Team::tile(), direction) {
    first_slabs = kTwoPhases ? slab_count(args.H) : 0;
    const int slabs = first_slabs + slab_count((kTwoPhases ? 2 : kG) * args.H);
    stride = slabs * kSlabBytes + kRowPad;
    rows = shared;
    scale = args.scale != nullptr ? load_once(args.scale) : 1.0f;
    unscale = 1.0f / scale;
    load_weights(shared + kRowSets * kColumns * stride, slabs);
  }

  RNNFAST_DEVICE void run() {
    for (int i = thread_index() * 4; i < kRowSets * kColumns * stride; i += kThreads * 4) {
      *reinterpret_cast<uint32_t*>(rows + i) = 0;
    }
    load_state();
    store_padding();
    begin();
    for (int k = 1; k <= 2; ++k) fetch_reset(sequences.longest - k);
    prefetch(sequences.longest - 1);
    sync_block();
    for (int s = sequences.longest - 1; s >= 0; --s) step(s);
    store_state();
  }

 private:
  static constexpr int kRowSets = kTwoPhases ? 1 : 2;

  // --- where things are ------------------------------------------------------------------------

  RNNFAST_DEVICE static int slab_count(int64_t columns) {
    return int((columns + kValues - 1) / kValues);
  }
  RNNFAST_DEVICE int unit(int i, int octet) const {
    return w.group(i) * kTileUnits + octet * 8 + lane() / 4;
  }
  RNNFAST_DEVICE bool is_unit(int i, int octet) const { return unit(i, octet) < int(args.H); }
  // Where a unit stands in the row that begins there; inside it if it does not exist.
  RNNFAST_DEVICE int64_t place(int64_t row, int i, int octet) const {
    const int u = unit(i, octet), last = int(args.H) - 1;
    return row + (u < last ? u : last);
  }
  // From the thread's first unit.
  RNNFAST_DEVICE static constexpr int behind(int i, int octet) {
    return i * kWarps * kTileUnits + octet * 8;
  }
  // The next step's operands lie in the other set.
  RNNFAST_DEVICE void turn_over() {
    if constexpr (kRowSets == 1) return;
    reads += flip;
    writes += flip;
    flip = -flip;
  }

  // f(tile, octet, sequence) for all that the thread has, also for units and sequences that do not
  // exist.
  template <class F>
  RNNFAST_DEVICE void each(const F& f) {
    RNNFAST_UNROLL
    for (int i = 0; i < kTiles; ++i) {
      if (i >= w.tiles) continue;
      RNNFAST_UNROLL
      for (int octet = 0; octet < kOctets; ++octet) {
        RNNFAST_UNROLL
        for (int j = 0; j < 2; ++j) f(i, octet, j);
      }
    }
  }
  // Whether this thread stores it.
  RNNFAST_DEVICE bool owns(int i, int octet, int j) const {
    return is_unit(i, octet) && sequences.exists(j);
  }

  // The N gradients of a unit as operands, side by side, behind `before` columns of the row.
  template <int N>
  RNNFAST_DEVICE void publish(int before, int i, int octet, int j, const Real (&values)[N]) const {
    constexpr int kOwn = kTwoPhases ? 1 : N;  // times its first unit: what `writes` has of them
    auto* row = reinterpret_cast<Operand*>(rows + writes + j * stride);
    const int column = before + behind(i, octet) * N + (N - kOwn) * unit(0, 0);
    SlotVector<Operand, N == 3 ? 1 : N> together;
    RNNFAST_UNROLL
    for (int k = 0; k < N; ++k) {
      const Operand operand = Mma::operand(values[k].value * scale);
      if constexpr (N == 3) {
        row[column + k] = operand;
      } else {
        together.at[k] = operand;
      }
    }
    if constexpr (N != 3) store(reinterpret_cast<decltype(together)*>(row + column), together);
  }

  // --- before and after ------------------------------------------------------------------------

  // Column `column` of W_hhᵀ: unit · G + gate; of two phases first the units of n, then unit · 2 +
  // (r or z).
  RNNFAST_DEVICE void load_weights(unsigned char* shared, int slabs) {
    const S* matrix = static_cast<const S*>(d.w_hh);
    const int64_t H = args.H;
    const int all_tiles = int((H + kTileUnits - 1) / kTileUnits);
    const bool chunks = detail::may_load_chunks(matrix, H);
    const auto where = [&](int t, int row, int column) -> const S* {
      int64_t unit = column / kG, gate = column % kG;
      if constexpr (kTwoPhases) {
        const int second = column - first_slabs * kValues;
        unit = second < 0 ? column : second / 2;
        gate = second < 0 ? 2 : second % 2;
      }
      const int64_t to = int64_t(w.group(t)) * kTileUnits + row;
      const bool there = (unit < H) & (to < H);  // without a branch: all loads at once
      return there ? matrix + (gate * H + unit) * H + to : nullptr;
    };
    w.template load_all<Along::kRows>(shared, slabs, all_tiles, matrix, chunks, where);
  }

  // At the last step.
  RNNFAST_DEVICE void begin() {
    flip = kColumns * stride;
    reads = Mma::own_place(stride);
    row_step = sequences.all.reverse ? -sequences.all.step : sequences.all.step;
    reset_step = sequences.all.reverse ? -args.B : args.B;
    constexpr int kOwn = (kTwoPhases ? 1 : kG) * int(sizeof(Operand));
    writes = Sequences::column(0) * stride + unit(0, 0) * kOwn;
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int last = sequences.longest - 1;
      const int64_t time = sequences.all.reverse ? sequences.walk[j].length - 1 - last : last;
      first[j] = sequences.first(j) + unit(0, 0);
      at[j] = time * sequences.all.step + first[j];
      if (d.resets == nullptr) continue;
      reset_at[j] =
          reinterpret_cast<const uint8_t*>(d.resets) + time * args.B + sequences.walk[j].batch;
    }
  }

  RNNFAST_DEVICE void load_state() {
    each([&](int i, int octet, int j) {
      const int64_t at = place(sequences.first(j), i, octet);
      dh[i][octet][j] = load_carried(static_cast<const S*>(d.dh_last), d.after.h, at);
      if constexpr (kHasCell) {
        dc[i][octet][j] = load_carried(static_cast<const S*>(d.dc_last), d.after.c, at);
      }
    });
  }

  RNNFAST_DEVICE void store_state() {
    each([&](int i, int octet, int j) {
      if (!owns(i, octet, j)) return;
      const int64_t at = place(sequences.first(j), i, octet);
      store_carried(static_cast<S*>(d.dh0), d.before.h, at, dh[i][octet][j].value);
      if constexpr (kHasCell) {
        store_carried(static_cast<S*>(d.dc0), d.before.c, at, dc[i][octet][j].value);
      }
    });
  }

  // Past the sequences' ends.
  RNNFAST_DEVICE void store_padding() {
    Gates zero;
    RNNFAST_UNROLL
    for (int k = 0; k < kSlots; ++k) zero.at[k] = narrow<S>(0.0f);
    each([&](int i, int octet, int j) {
      if (!owns(i, octet, j)) return;
      for (int s = sequences.walk[j].length; s < sequences.T; ++s) {
        store(static_cast<Gates*>(d.dgates) + place(sequences.row(j, s), i, octet), zero);
      }
    });
  }

  // --- a step ----------------------------------------------------------------------------------

  // Whether a step of the sequence was reset before, two steps ahead of its use.
  RNNFAST_DEVICE void fetch_reset(int s) {
    if (d.resets == nullptr) return;
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      reset_before[j] = reset_fetched[j];
      reset_fetched[j] = 0;
      if (s >= 0 && sequences.alive(j, s)) reset_fetched[j] = load_once(reset_at[j]);
      reset_at[j] -= reset_step;
    }
  }

  // What step s reads, where at[] stands.
  RNNFAST_DEVICE void prefetch(int s) {
    if (s < 0) return;
    const void* stored = C::kSavesOutput ? d.y : d.saved;
    each([&](int i, int octet, int j) {
      if (!is_unit(i, octet) || !sequences.alive(j, s)) return;
      const int64_t here = at[j] + behind(i, octet);
      gates[i][octet][j] = load_once(static_cast<const Stored*>(stored) + here);
      if (d.dy != nullptr) dy[i][octet][j] = load_once(static_cast<const S*>(d.dy) + here);
      if constexpr (kHasCell) {
        if (d.dc != nullptr) dc_out[i][octet][j] = load_once(static_cast<const S*>(d.dc) + here);
      }
    });
    if (s > 0) {
      each([&](int i, int octet, int j) {
        if (!is_unit(i, octet) || !sequences.alive(j, s)) return;
        const int64_t before = at[j] - row_step + behind(i, octet);
        if constexpr (C::kReadsH) {
          h_before[i][octet][j] = load_once(static_cast<const S*>(d.y) + before);
        }
        if constexpr (kHasCell) c_before[i][octet][j] = load_once(d.c + before);
      });
    } else {
      each([&](int i, int octet, int j) {
        if (!is_unit(i, octet) || !sequences.alive(j, s)) return;
        const int64_t before = first[j] + behind(i, octet);
        if constexpr (C::kReadsH) {
          h_before[i][octet][j] = load_once(static_cast<const S*>(d.h0) + before);
        }
        if constexpr (kHasCell) {
          c_before[i][octet][j] = load_carried(static_cast<const S*>(d.c0), d.c_before, before);
        }
      });
    }
  }

  // The state before the step, and the gradient of the state after it.
  RNNFAST_DEVICE void gather(int i, int octet, int j, Real (&state)[C::kStates],
                             Real (&ds_new)[C::kStates]) const {
    state[0] = 0;
    if constexpr (C::kReadsH) {
      if (reset[j] == 0) state[0] = widen(h_before[i][octet][j]);
    }
    ds_new[0] = dh[i][octet][j];
    if (d.dy != nullptr) ds_new[0] = ds_new[0] + Real(widen(dy[i][octet][j]));
    if constexpr (kHasCell) {
      state[1] = reset[j] != 0 ? 0.0f : c_before[i][octet][j];
      ds_new[1] = dc[i][octet][j];
      if (d.dc != nullptr) ds_new[1] = ds_new[1] + Real(widen(dc_out[i][octet][j]));
    }
  }

  RNNFAST_DEVICE S rounded(Real gradient) const { return narrow<S>(gradient.value * scale); }

  // After the cell's backward: ds is what goes to the state before directly.
  RNNFAST_DEVICE void keep(int i, int octet, int j, const Real (&ds)[C::kStates]) {
    dh[i][octet][j] = ds[0];
    if constexpr (kHasCell) dc[i][octet][j] = ds[1];
  }

  // f(tile, octet, sequence, W_hhᵀ's product), slabs lo .. hi.
  template <class F>
  RNNFAST_DEVICE void product(int lo, int hi, int s, const F& f) {
    products<0, 1, kChains>(w, rows + reads, stride, lo, hi,
                            [&](int i, int, const float (&total)[4]) {
                              RNNFAST_UNROLL
                              for (int octet = 0; octet < kOctets; ++octet) {
                                RNNFAST_UNROLL
                                for (int j = 0; j < 2; ++j) {
                                  if (is_unit(i, octet) && sequences.alive(j, s)) {
                                    f(i, octet, j, Real(total[2 * octet + j] * unscale));
                                  }
                                }
                              }
                            });
  }

  // dh and dc of the state before step s are complete.
  RNNFAST_DEVICE void hand_down(int i, int octet, int j, Real through_gates) {
    dh[i][octet][j] = reset[j] != 0 ? Real(0) : clipped(dh[i][octet][j] + through_gates, args.clip);
    if constexpr (kHasCell) {
      dc[i][octet][j] = reset[j] != 0 ? Real(0) : clipped(dc[i][octet][j], args.clip);
    }
  }

  RNNFAST_DEVICE void step(int s) {
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) reset[j] = reset_before[j];
    fetch_reset(s - 2);
    if constexpr (kTwoPhases) {
      step_two_phases(s);
    } else {
      step_one_phase(s);
    }
  }

  RNNFAST_DEVICE void step_one_phase(int s) {
    each([&](int i, int octet, int j) {
      if (!is_unit(i, octet) || !sequences.alive(j, s)) return;
      Real state[C::kStates], ds_new[C::kStates], ds[C::kStates], saved[C::kSaved], dgx[kG],
          dgh[kG];
      gather(i, octet, j, state, ds_new);
      decode_saved<Cell>(gates[i][octet][j].values(), saved);
      cell_backward<Cell>(args.relu, ds_new, saved, state, dgx, dgh, ds);
      keep(i, octet, j, ds);
      publish(0, i, octet, j, dgh);
      Gates out;
      RNNFAST_UNROLL
      for (int g = 0; g < kG; ++g) out.at[g] = rounded(dgx[g]);
      if constexpr (C::kOwnGate >= 0) out.at[kG] = rounded(dgh[C::kOwnGate]);
      gates[i][octet][j] = Stored::of(out);
    });
    hand_over(s);
    product(0, w.slabs, s, [&](int i, int octet, int j, Real sum) { hand_down(i, octet, j, sum); });
    turn_over();
  }

  RNNFAST_DEVICE void step_two_phases(int s) {
    Real dg_z[kTiles][kOctets][2], dg_n[kTiles][kOctets][2];
    each([&](int i, int octet, int j) {
      if (!is_unit(i, octet) || !sequences.alive(j, s)) return;
      Real state[1], ds_new[1], ds[1], saved[C::kSaved], dgx[kG], dgh[kG];
      gather(i, octet, j, state, ds_new);
      decode_saved<Cell>(gates[i][octet][j].values(), saved);
      C::backward(At<1>{}, ds_new, saved, state, dgx, dgh, ds);
      dg_z[i][octet][j] = dgx[1];
      dg_n[i][octet][j] = dgx[2];
      keep(i, octet, j, ds);
      const Real candidate[1] = {dg_n[i][octet][j]};
      publish(0, i, octet, j, candidate);
    });
    Team::signal();
    Team::wait();
    product(0, first_slabs, s, [&](int i, int octet, int j, Real du) {
      Real state[1], d[1], ds[1] = {dh[i][octet][j]}, saved[C::kSaved], dgx[kG], dgh[kG];
      gather(i, octet, j, state, d);
      d[0] = du;
      decode_saved<Cell>(gates[i][octet][j].values(), saved);
      C::backward(At<0>{}, d, saved, state, dgx, dgh, ds);
      const Real dg_rz[2] = {dgx[0], dg_z[i][octet][j]};
      keep(i, octet, j, ds);
      publish(first_slabs * kValues, i, octet, j, dg_rz);
      Gates out;
      out.at[0] = rounded(dg_rz[0]);
      out.at[1] = rounded(dg_rz[1]);
      out.at[2] = rounded(dg_n[i][octet][j]);
      out.at[3] = narrow<S>(0.0f);
      gates[i][octet][j] = Stored::of(out);
    });
    hand_over(s);
    product(first_slabs, w.slabs, s,
            [&](int i, int octet, int j, Real sum) { hand_down(i, octet, j, sum); });
  }

  // The operands of step s are written: signal, and then what only memory waits for.
  RNNFAST_DEVICE void hand_over(int s) {
    Team::signal();
    store_step(s);
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) at[j] -= row_step;
    prefetch(s - 1);
    Team::wait();
  }

  RNNFAST_DEVICE void store_step(int s) {
    each([&](int i, int octet, int j) {
      if (!is_unit(i, octet) || !sequences.alive(j, s)) return;
      store(static_cast<Stored*>(d.dgates) + at[j] + behind(i, octet), gates[i][octet][j]);
    });
  }
};

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
RNNFAST_KERNEL(kThreads)
sequence_backward(RNNFAST_ARGS BackwardArgs args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  BackwardScan<Cell, Mma, Team, kTiles, kHeld> scan(args, args.direction[block_y()], shared);
  scan.run();
}

}  // namespace rnnfast::cuda
