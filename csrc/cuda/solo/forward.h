// The resident forward kernel: one launch for all T steps. W_hh is loaded once and stays in
// registers and shared memory, the state never leaves the chip but as output.
//
// A step: multiply W_hh by the operands in shared memory; the gate math in the accumulators'
// threads; write the new h to the other set of rows; then, while others get there, store the
// outputs and load the gates of the step after the next; one barrier. (A cell of two phases does
// this twice.) The state is carried in fp32; a sequence that ended keeps it, and reads and writes
// nothing more.
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
  using S = typename Mma::Storage;
  using Real = ForwardReal<S>;
  using C = Cell<Real>;
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
  using Stored = Packed<S, kSlots>;
  // Whether there are registers for gates that are loaded two steps before they are used, and for
  // positions that move from step to step; else they are computed at every step.
  static constexpr bool kTwoAhead =
      kGroups * kOctets <= 2 && kGroups * kOctets * sizeof(Gates) <= 16;
  using W = Weights<Mma, kGroups * kTiles, kTiles, kHeld>;

  const ForwardArgs& args;
  const ForwardDirection& d;
  Sequences sequences;
  W w;
  unsigned char* rows;  // two sets of kColumns rows
  int stride;

  int set;        // bytes from `rows` on: where the operands of this product begin
  int64_t at[2];  // of the thread's sequences: where the step at hand has its first unit
  const uint8_t* reset_at[2] = {nullptr, nullptr};  // of the reset that is fetched next
  int64_t row_step, reset_step;                     // from a step to the next one
  int reset[2] = {0, 0};                            // not 0: the next step begins with a state of 0

  // Of the thread's units [group][octet] and sequences: the state; the gates of the step at hand,
  // and of the next one; what is saved; the product.
  Real h[kGroups][kOctets][2] = {}, c[kGroups][kOctets][2] = {};
  Stored gates[kGroups][kOctets][2] = {};
  Stored next_gates[kGroups][kOctets][2] = {};
  Stored saved[kGroups][kOctets][2];
  float sum[kGroups][kOctets][kG][2];

  RNNFAST_DEVICE ForwardScan(const ForwardArgs& a, const ForwardDirection& direction,
                             unsigned char* shared)
      : args(a), d(direction), sequences(a.T, a.B, a.H, Team::tile(), direction) {
    const int slabs = int(slab_count());
    const int all_groups = int((a.H + kGroup.units - 1) / kGroup.units);
    stride = slabs * kSlabBytes + kRowPad;
    rows = shared;
    load_weights(shared + 2 * kColumns * stride, slabs, all_groups);
  }

  RNNFAST_DEVICE void run() {
    for (int i = thread_index() * 4; i < 2 * kColumns * stride; i += kThreads * 4) {
      *reinterpret_cast<uint32_t*>(rows + i) = 0;
    }
    begin();
    load_state();
    sync_block();
    publish_state();
    use_resets(1);
    if (!kTwoAhead && thread_index() == 0) parked_steps() = sequences.longest;
    Team::signal();
    Team::wait();
    turn_over();
    for (int s = 0; s < (kTwoAhead ? sequences.longest : parked_steps()); ++s) step(s);
    store_state();
    store_padding();
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
  // From the thread's first unit.
  RNNFAST_DEVICE static constexpr int behind(int i, int octet) {
    return i * kWarps * kGroup.units + octet * 8;
  }
  // Where a unit stands in the row that begins there; inside it if it does not exist.
  RNNFAST_DEVICE int64_t place(int64_t row, int i, int octet) const {
    const int u = unit(i, octet), last = int(args.H) - 1;
    return row + (u < last ? u : last);
  }
  // Where step s of a sequence, so many after the one at hand, has the thread's first unit.
  RNNFAST_DEVICE int64_t first_unit(int j, int s, int ahead) const {
    return kTwoAhead ? at[j] + ahead * row_step : sequences.row(j, s) + unit(0, 0);
  }
  RNNFAST_DEVICE void publish(int i, int octet, int j, Operand operand) const {
    const int other = kColumns * stride - set;
    auto* row = reinterpret_cast<Operand*>(rows + other + Sequences::column(j) * stride);
    if (is_unit(i, octet)) row[unit(0, 0) + behind(i, octet)] = operand;
  }
  // How many steps there are: a register more, which the largest shapes do not have. Behind the
  // slabs of the first row.
  RNNFAST_DEVICE int& parked_steps() const {
    return *reinterpret_cast<int*>(rows + stride - kRowPad);
  }
  // What was written is read next.
  RNNFAST_DEVICE void turn_over() { set = kColumns * stride - set; }

  // f(group, octet, sequence) for all that the thread has, also for units and sequences that do not
  // exist.
  template <class F>
  RNNFAST_DEVICE void each(const F& f) {
    RNNFAST_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      if (i * kTiles >= w.tiles) continue;
      RNNFAST_UNROLL
      for (int octet = 0; octet < kOctets; ++octet) {
        RNNFAST_UNROLL
        for (int j = 0; j < 2; ++j) f(i, octet, j);
      }
    }
  }
  // The same without a branch, also of groups that the warp does not have: of little work.
  template <class F>
  RNNFAST_DEVICE void all(const F& f) {
    RNNFAST_UNROLL
    for (int i = 0; i < kGroups; ++i) {
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
    const bool chunks = detail::may_load_chunks(matrix, H);
    const auto where = [&](int t, int row, int column) -> const S* {
      const int tile = t % kTiles, half = row / 8;
      const int64_t unit =
          int64_t(w.group(t / kTiles)) * kGroup.units + Rows<Cell>::octet(tile, half) * 8 + row % 8;
      const bool there = (unit < H) & (column < H);  // without a branch: all loads at once
      return there ? matrix + (Rows<Cell>::gate(tile, half) * H + unit) * H + column : nullptr;
    };
    w.template load_all<Along::kColumns>(shared, slabs, all_groups, matrix, chunks, where);
  }

  // At the first step.
  RNNFAST_DEVICE void begin() {
    set = kColumns * stride;
    row_step = sequences.all.reverse ? -sequences.all.step : sequences.all.step;
    reset_step = sequences.all.reverse ? -args.B : args.B;
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      at[j] = sequences.row(j, 0) + unit(0, 0);
      if (d.resets == nullptr) continue;
      reset_at[j] = reinterpret_cast<const uint8_t*>(d.resets) + sequences.reset_place(j, 0);
    }
  }

  RNNFAST_DEVICE void load_state() {
    const S* h0 = static_cast<const S*>(d.h0);
    const S* c0 = static_cast<const S*>(d.c0);
    each([&](int i, int octet, int j) {
      const int64_t at = place(sequences.first(j), i, octet);
      h[i][octet][j] = load_carried(h0, d.before.h, at);
      if constexpr (kHasCell) c[i][octet][j] = load_carried(c0, d.before.c, at);
    });
    use_resets(0);
    load_gates(0, 0, gates);
    if constexpr (kTwoAhead) load_gates(1, 1, next_gates);
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

  // Past the sequences' ends.
  RNNFAST_DEVICE void store_padding() {
    each([&](int i, int octet, int j) {
      if (!owns(i, octet, j)) return;
      for (int s = sequences.walk[j].length; s < sequences.T; ++s) {
        const int64_t at = place(sequences.row(j, s), i, octet);
        store(static_cast<S*>(d.y) + at, narrow<S>(0.0f));
        if constexpr (kHasCell) {
          if (d.c != nullptr) store(d.c + at, 0.0f);
        }
      }
    });
  }

  // --- a step ----------------------------------------------------------------------------------

  // Those that are here, on the state; then those of step s are fetched.
  RNNFAST_DEVICE void use_resets(int s) {
    if (d.resets == nullptr) return;
    all([&](int i, int octet, int j) {
      h[i][octet][j] = reset[j] != 0 ? Real(0) : h[i][octet][j];
      if constexpr (kHasCell) c[i][octet][j] = reset[j] != 0 ? Real(0) : c[i][octet][j];
    });
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      reset[j] = 0;
      const uint8_t* own = reset_at[j];
      if constexpr (!kTwoAhead) {
        own = reinterpret_cast<const uint8_t*>(d.resets) + sequences.reset_place(j, s);
      }
      if (sequences.alive(j, s)) reset[j] = load_once(own);
      reset_at[j] += reset_step;
    }
  }

  // Of step s, so many after the one at hand.
  RNNFAST_DEVICE void load_gates(int s, int ahead, Stored (&of_step)[kGroups][kOctets][2]) {
    const Stored* stored = static_cast<const Stored*>(d.gates);
    all([&](int i, int octet, int j) {
      const Stored* from = stored + first_unit(j, s, ahead);
      if (is_unit(i, octet) && sequences.alive(j, s)) {
        of_step[i][octet][j] = load(from + behind(i, octet));
      }
    });
  }

  // h as the next step is to find it, as an operand.
  RNNFAST_DEVICE void publish_state() {
    all([&](int i, int octet, int j) {
      const Operand operand = Mma::operand(h[i][octet][j].value);
      publish(i, octet, j, reset[j] != 0 ? Operand(0) : operand);
    });
  }

  // The state that this step starts from.
  RNNFAST_DEVICE void state_before(int i, int octet, int j, Real (&state)[C::kStates]) const {
    state[0] = h[i][octet][j];
    if constexpr (kHasCell) state[1] = c[i][octet][j];
  }

  // sum of the gates of tiles kFirst .. kFirst + kCount of each group.
  template <int kFirst, int kCount>
  RNNFAST_DEVICE void product() {
    products<kFirst, kCount, kChains>(w, rows + set + Mma::own_place(stride), stride, 0, w.slabs,
                                      [&](int i, int tile, const float (&total)[4]) {
                                        RNNFAST_UNROLL
                                        for (int half = 0; half < 2; ++half) {
                                          const int gate = Rows<Cell>::gate(tile, half),
                                                    octet = Rows<Cell>::octet(tile, half);
                                          RNNFAST_UNROLL
                                          for (int j = 0; j < 2; ++j)
                                            sum[i][octet][gate][j] = total[2 * half + j];
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
    product<0, kTiles>();
    each([&](int i, int octet, int j) {
      Real in[kSlots], gx[kG], gh[kG], before[C::kStates], after[C::kStates], saved[C::kSaved];
      read_plain(gates[i][octet][j].values(), in);
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
    hand_over(s);
  }

  // The operands of the first phase are in one set, u = r·h in the other. Between the phases
  // `gates` holds what will be saved, but gx_n where n will be.
  RNNFAST_DEVICE void step_two_phases(int s) {
    constexpr int kU = C::kPhases[1].operand;
    product<0, 2>();
    each([&](int i, int octet, int j) {
      Real in[kSlots], gx[2], gh[2], before[1], after[1], saved[C::kSaved];
      const Gates stored = gates[i][octet][j].values();
      read_plain(stored, in);
      RNNFAST_UNROLL
      for (int g = 0; g < 2; ++g) {
        gx[g] = in[g];
        gh[g] = sum[i][octet][g][j];
      }
      state_before(i, octet, j, before);
      C::forward(At<0>{}, gx, gh, before, after, saved);
      saved[2] = 0;
      publish(i, octet, j, Mma::operand(saved[kU].value));
      Gates kept = encode_saved<Cell, S>(saved);
      kept.at[2] = stored.at[2];
      this->saved[i][octet][j] = Stored::of(kept);
    });
    Team::signal();
    Team::wait();
    turn_over();
    product<2, 1>();
    each([&](int i, int octet, int j) {
      Real before[1], after[1], saved[C::kSaved];
      const Gates kept = this->saved[i][octet][j].values();
      decode_saved<Cell>(kept, saved);
      state_before(i, octet, j, before);
      const Real gx[1] = {widen(kept.at[2])}, gh[1] = {sum[i][octet][2][j]};
      C::forward(At<1>{}, gx, gh, before, after, saved);
      keep(i, octet, j, sequences.alive(j, s), after, saved);
    });
    hand_over(s);
  }

  // The new state, unless the sequence has ended, and what is saved in place of the gates.
  RNNFAST_DEVICE void keep(int i, int octet, int j, bool alive, const Real (&after)[C::kStates],
                           const Real (&saved)[C::kSaved]) {
    h[i][octet][j] = alive ? after[0] : h[i][octet][j];
    if constexpr (kHasCell) c[i][octet][j] = alive ? after[1] : c[i][octet][j];
    if constexpr (!C::kSavesOutput) {
      this->saved[i][octet][j] = Stored::of(encode_saved<Cell, S>(saved));
    }
  }

  // The end of step s: its h to the others first; then what only memory waits for.
  RNNFAST_DEVICE void hand_over(int s) {
    publish_state();
    Team::signal();
    store_step(s);
    use_resets(s + 2);
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) at[j] += row_step;
    if constexpr (kTwoAhead) {
      all([&](int i, int octet, int j) { gates[i][octet][j] = next_gates[i][octet][j]; });
      load_gates(s + 2, 1, next_gates);
    } else {
      load_gates(s + 1, 0, gates);
    }
    Team::wait();
    turn_over();
  }

  RNNFAST_DEVICE static void read_plain(const Gates& stored, Real (&values)[kSlots]) {
    RNNFAST_UNROLL
    for (int k = 0; k < kSlots; ++k) values[k] = widen(stored.at[k]);
  }

  RNNFAST_DEVICE void store_step(int s) {
    const int64_t rows_at[2] = {first_unit(0, s, 0), first_unit(1, s, 0)};
    const bool keeps_c = kHasCell && d.c != nullptr, saves = !C::kSavesOutput && args.training;
    all([&](int i, int octet, int j) {
      const bool due = is_unit(i, octet) & sequences.alive(j, s);
      const int unit = behind(i, octet);
      const int64_t row = rows_at[j];
      const S y = narrow<S>(h[i][octet][j].value);
      if (due) store(static_cast<S*>(d.y) + row + unit, y);
      if constexpr (kHasCell) {
        if (due & keeps_c) store(d.c + row + unit, c[i][octet][j].value);
      }
      if constexpr (!C::kSavesOutput) {
        if (due & saves) store(static_cast<Stored*>(d.gates) + row + unit, saved[i][octet][j]);
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
