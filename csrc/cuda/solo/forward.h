// The resident forward kernel: one launch for all T steps. W_hh is loaded once and stays in
// registers and shared memory, the state never leaves the chip but as output.
//
// A step: multiply W_hh by the operands in shared memory; the gate math in the accumulators'
// threads; write the new h to the other set of rows; then, while others get there, store the
// outputs and load the next step's gates; one barrier. (A cell of two phases does this twice.) The
// state is carried in fp32; a sequence that ended keeps it.
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

template <template <class> class Cell, class Mma, class Team, int kGroups, int kHeld>
struct ForwardScan {
  using C = Cell<Real>;
  using S = typename Mma::Storage;
  using Operand = typename Mma::Operand;
  static constexpr CellId kCell = kIdOf<Cell>;
  static constexpr Group kGroup = group_of(Pass::kForward, kCell);
  static constexpr int kTiles = kGroup.tiles, kOctets = kGroup.units / 8;
  static constexpr int kSlots = Slots<Cell>::kSlots, kG = C::kGates;
  static constexpr bool kTwoPhases = kGatePhases<C> == 2;
  static_assert(may_be_resident<C>(), "no kernel keeps the weights of a cell with such phases");
  static constexpr bool kHasCell = C::kStates > 1;
  static constexpr int kChains = kGroups * kTiles >= 3 ? 1 : 2;
  using Gates = SlotVector<S, kSlots>;
  using W = Weights<Mma, kGroups * kTiles, kTiles, kHeld>;

  const ForwardArgs& args;
  const ForwardDirection& d;
  Sequences sequences;
  W w;
  unsigned char* rows;  // two sets of kColumns rows
  int64_t stride;
  int groups;         // of this warp
  bool reset_now[2];  // of the thread's sequences: whether this step begins with a state of 0
  bool reset_next[2] = {false, false};
  int64_t row[2];  // of the step at hand, or the next one once its gates are on their way

  // Of the thread's units [group][octet] and sequences: the state; the gates, of the next step or
  // as saved; the product.
  Real h[kGroups][kOctets][2], c[kGroups][kOctets][2];
  Gates gates[kGroups][kOctets][2];
  float sum[kGroups][kOctets][kG][2];

  RNNFAST_DEVICE ForwardScan(const ForwardArgs& a, const ForwardDirection& direction,
                             unsigned char* shared)
      : args(a), d(direction), sequences(a.T, a.B, a.H, Team::tile(), direction) {
    const int slabs = int(slab_count());
    const int all_groups = int((a.H + kGroup.units - 1) / kGroup.units);
    stride = int64_t(slabs) * kSlabBytes + kRowPad;
    rows = shared;
    load_weights(shared + 2 * kColumns * stride, slabs, all_groups);
    groups = w.tiles / kTiles;
  }

  RNNFAST_DEVICE void run() {
    for (int64_t i = thread_index() * 4; i < 2 * kColumns * stride; i += kThreads * 4) {
      *reinterpret_cast<uint32_t*>(rows + i) = 0;
    }
    load_state();
    sync_block();
    publish_state(0);
    prefetch(0);
    Team::signal();
    Team::wait();
    for (int s = 0; s < sequences.longest; ++s) step(s);
    store_state();
    for (int s = sequences.longest; s < sequences.T; ++s) store_padding(s);
  }

 private:
  // --- where things are ------------------------------------------------------------------------

  RNNFAST_DEVICE int64_t slab_count() const {
    constexpr int kValues = kSlabBytes / int(sizeof(Operand));
    return (args.H + kValues - 1) / kValues;
  }
  RNNFAST_DEVICE int unit(int i, int octet) const {
    return w.group(i) * kGroup.units + octet * 8 + lane() / 4;
  }
  RNNFAST_DEVICE bool is_unit(int i, int octet) const { return unit(i, octet) < int(args.H); }
  // Where a unit stands in the row that begins there; inside it if it does not exist.
  RNNFAST_DEVICE int64_t place(int64_t row, int i, int octet) const {
    const int u = unit(i, octet), last = int(args.H) - 1;
    return row + (u < last ? u : last);
  }
  RNNFAST_DEVICE unsigned char* row_set(int set) const {
    return rows + (set & 1) * kColumns * stride;
  }
  RNNFAST_DEVICE void publish(int set, int i, int octet, int j, Real value) const {
    auto* row = reinterpret_cast<Operand*>(row_set(set) + Sequences::column(j) * stride);
    if (is_unit(i, octet)) row[unit(i, octet)] = Mma::operand(value.value);
  }

  // f(group, octet, sequence) for all that the thread has, also for units and sequences that do not
  // exist.
  template <class F>
  RNNFAST_DEVICE void each(const F& f) {
    RNNFAST_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      if (i >= groups) continue;
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

  // --- before and after ------------------------------------------------------------------------

  RNNFAST_DEVICE void load_weights(unsigned char* shared, int slabs, int all_groups) {
    const S* matrix = static_cast<const S*>(d.w_hh);
    const int64_t H = args.H;
    w.load_all(shared, slabs, all_groups, [&](int t, int row, int column) -> Operand {
      const int tile = t % kTiles, half = row / 8;
      const int64_t unit =
          int64_t(w.group(t / kTiles)) * kGroup.units + Rows<Cell>::octet(tile, half) * 8 + row % 8;
      if (unit >= H || column >= H) return 0;
      return Mma::stored(
          load_once(matrix + (Rows<Cell>::gate(tile, half) * H + unit) * H + column));
    });
  }

  RNNFAST_DEVICE void load_state() {
    const S* h0 = static_cast<const S*>(d.h0);
    const S* c0 = static_cast<const S*>(d.c0);
    each([&](int i, int octet, int j) {
      const int64_t at = place(sequences.first(j), i, octet);
      h[i][octet][j] = load_carried(h0, d.before.h, at);
      if constexpr (kHasCell) c[i][octet][j] = load_carried(c0, d.before.c, at);
    });
    look_ahead(0);
  }

  RNNFAST_DEVICE void store_state() {
    S* h_last = static_cast<S*>(d.h_last);
    S* c_last = static_cast<S*>(d.c_last);
    each([&](int i, int octet, int j) {
      if (!owns(i, octet, j)) return;
      const int64_t at = place(sequences.first(j), i, octet);
      store_carried(h_last, d.after.h, at, h[i][octet][j].value);
      if constexpr (kHasCell) store_carried(c_last, d.after.c, at, c[i][octet][j].value);
    });
  }

  RNNFAST_DEVICE void store_padding(int s) {
    each([&](int i, int octet, int j) {
      if (!owns(i, octet, j)) return;
      const int64_t at = place(sequences.row(j, s), i, octet);
      store(static_cast<S*>(d.y) + at, narrow<S>(0.0f));
      if constexpr (kHasCell) {
        if (d.c != nullptr) store(d.c + at, 0.0f);
      }
    });
  }

  // --- a step ----------------------------------------------------------------------------------

  RNNFAST_DEVICE void look_ahead(int s) {
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      reset_now[j] = reset_next[j];
      reset_next[j] = sequences.reset(j, s);
    }
  }

  // h as step s is to find it, as an operand.
  RNNFAST_DEVICE void publish_state(int s) {
    each([&](int i, int octet, int j) {
      publish(s, i, octet, j, reset_next[j] ? Real(0) : h[i][octet][j]);
    });
  }

  // The state that this step starts from.
  RNNFAST_DEVICE void state_before(int i, int octet, int j, Real (&state)[C::kStates]) const {
    state[0] = reset_now[j] ? Real(0) : h[i][octet][j];
    if constexpr (kHasCell) state[1] = reset_now[j] ? Real(0) : c[i][octet][j];
  }

  RNNFAST_DEVICE void prefetch(int s) {
    if (s >= sequences.T) return;
    const Gates* all = static_cast<const Gates*>(d.gates);
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) row[j] = sequences.row(j, s);
    each(
        [&](int i, int octet, int j) { gates[i][octet][j] = load(all + place(row[j], i, octet)); });
  }

  // sum of the gates of tiles kFirst .. kFirst + kCount of each group, from the operands of `set`.
  template <int kFirst, int kCount>
  RNNFAST_DEVICE void product(int set) {
    products<kFirst, kCount, kChains>(
        w, row_set(set), stride, 0, w.slabs, [&](int i, int tile, const float (&total)[4]) {
          RNNFAST_UNROLL
          for (int half = 0; half < 2; ++half) {
            const int gate = Rows<Cell>::gate(tile, half), octet = Rows<Cell>::octet(tile, half);
            RNNFAST_UNROLL
            for (int j = 0; j < 2; ++j) sum[i][octet][gate][j] = total[2 * half + j];
          }
        });
  }

  RNNFAST_DEVICE void step(int s) {
    if constexpr (kTwoPhases) {
      step_two_phases(s);
    } else {
      step_one_phase(s);
    }
  }

  RNNFAST_DEVICE void step_one_phase(int s) {
    product<0, kTiles>(s);
    look_ahead(s + 1);
    each([&](int i, int octet, int j) {
      Real in[kSlots], gx[kG], gh[kG], before[C::kStates], after[C::kStates], saved[C::kSaved];
      read_plain(gates[i][octet][j], in);
      RNNFAST_UNROLL
      for (int g = 0; g < kG; ++g) {
        gx[g] = in[g];
        gh[g] = sum[i][octet][g][j];
      }
      if constexpr (C::kOwnGate >= 0) gh[C::kOwnGate] = gh[C::kOwnGate] + in[kG];
      state_before(i, octet, j, before);
      cell_forward<Cell>(args.relu, gx, gh, before, after, saved);
      keep(i, octet, j, sequences.alive(j, s), after, saved);
    });
    hand_over(s, s + 1);
  }

  // The operands of the first phase are in set 0, u = r·h in set 1. Between the phases `gates`
  // holds what will be saved, but gx_n where n will be.
  RNNFAST_DEVICE void step_two_phases(int s) {
    constexpr int kU = C::kPhases[1].operand;
    product<0, 2>(0);
    look_ahead(s + 1);
    each([&](int i, int octet, int j) {
      Real in[kSlots], gx[2], gh[2], before[1], after[1], saved[C::kSaved];
      read_plain(gates[i][octet][j], in);
      RNNFAST_UNROLL
      for (int g = 0; g < 2; ++g) {
        gx[g] = in[g];
        gh[g] = sum[i][octet][g][j];
      }
      state_before(i, octet, j, before);
      C::forward(At<0>{}, gx, gh, before, after, saved);
      saved[2] = 0;
      publish(1, i, octet, j, saved[kU]);
      const S gx_n = gates[i][octet][j].at[2];
      gates[i][octet][j] = encode_saved<Cell, S>(saved);
      gates[i][octet][j].at[2] = gx_n;
    });
    Team::signal();
    Team::wait();
    product<2, 1>(1);
    each([&](int i, int octet, int j) {
      Real before[1], after[1], saved[C::kSaved];
      decode_saved<Cell>(gates[i][octet][j], saved);
      state_before(i, octet, j, before);
      const Real gx[1] = {widen(gates[i][octet][j].at[2])}, gh[1] = {sum[i][octet][2][j]};
      C::forward(At<1>{}, gx, gh, before, after, saved);
      keep(i, octet, j, sequences.alive(j, s), after, saved);
    });
    hand_over(s, 0);
  }

  // The new state, unless the sequence has ended, and what is saved in place of the gates.
  RNNFAST_DEVICE void keep(int i, int octet, int j, bool alive, const Real (&after)[C::kStates],
                           const Real (&saved)[C::kSaved]) {
    h[i][octet][j] = alive ? after[0] : h[i][octet][j];
    if constexpr (kHasCell) c[i][octet][j] = alive ? after[1] : c[i][octet][j];
    if constexpr (!C::kSavesOutput) gates[i][octet][j] = encode_saved<Cell, S>(saved);
  }

  // The end of step s: its h to the others first, as set `set`; then what only memory waits for.
  RNNFAST_DEVICE void hand_over(int s, int set) {
    publish_state(set);
    Team::signal();
    store_step(s);
    prefetch(s + 1);
    Team::wait();
  }

  RNNFAST_DEVICE static void read_plain(const Gates& stored, Real (&values)[kSlots]) {
    RNNFAST_UNROLL
    for (int k = 0; k < kSlots; ++k) values[k] = widen(stored.at[k]);
  }

  RNNFAST_DEVICE void store_step(int s) {
    each([&](int i, int octet, int j) {
      if (!owns(i, octet, j)) return;
      const bool alive = sequences.alive(j, s);
      const int64_t at = place(row[j], i, octet);
      store(static_cast<S*>(d.y) + at, narrow<S>(alive ? h[i][octet][j].value : 0.0f));
      if constexpr (kHasCell) {
        if (d.c != nullptr) store(d.c + at, alive ? c[i][octet][j].value : 0.0f);
      }
      if constexpr (!C::kSavesOutput) {
        if (args.training && alive) store(static_cast<Gates*>(d.gates) + at, gates[i][octet][j]);
      }
    });
  }
};

template <template <class> class Cell, class Mma, class Team, int kGroups, int kHeld>
RNNFAST_KERNEL(kThreads)
sequence_forward(RNNFAST_ARGS ForwardArgs args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  ForwardScan<Cell, Mma, Team, kGroups, kHeld> scan(args, args.direction[block_y()], shared);
  scan.run();
}

}  // namespace rnnfast::cuda
