// The forward kernel of a team of blocks: one launch for all T steps. Each block keeps the rows of
// W_hh that its hidden units need, in registers and shared memory.
//
// A turn (a step of a batch tile): wait for the state of all units; multiply (product.h); the
// gate math, a thread for each (unit, sequence); send the block's part of the new state; then,
// while others get there, store the outputs and load the next turn's gates. With several batch
// tiles a team, one tile's turn hides the other's exchange. A cell of two phases takes two turns a
// step. The state is carried in fp32, in shared memory; a sequence that ended keeps it.
#pragma once

#include "cuda/device/cell_steps.h"
#include "cuda/device/saved.h"
#include "cuda/team/block.h"
#include "cuda/team/product.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
class TeamForward {
 public:
  RNNFAST_DEVICE TeamForward(const WithTeam<ForwardArgs>& args, const ForwardDirection& direction,
                             unsigned char* shared)
      : args_(args.scan),
        d_(direction),
        batch_(args.scan.T, args.scan.B, args.scan.H, direction),
        team_(args.team, shared),
        pairs_(args.team.units, team_.rank(), args.scan.H) {
    load_weights(shared + team_.shared_bytes(), args.team);
    parking_ = Park::begin(product_.end(), pairs_.units);
    tiles_ = Tiles::begin(parking_.end(args.team.tiles), team_.team(), args.team.tiles, batch_);
  }

  RNNFAST_DEVICE void run() {
    team_.open();
    for (int n = 0; n < tiles_.count; ++n) start(n);
    if (tiles_.most > 0) prefetch(0, tiles_.after(0, -1));
    for (int s = 0; s < tiles_.most; ++s) {
      for (int n = tiles_.after(s, -1); n >= 0; n = tiles_.after(s, n)) {
        if constexpr (kTwoPhases) {
          reset_turn(s, n);
        } else {
          turn(s, n);
        }
      }
      if constexpr (kTwoPhases) {
        for (int n = tiles_.after(s, -1); n >= 0; n = tiles_.after(s, n)) candidate_turn(s, n);
      }
    }
    for (int n = 0; n < tiles_.count; ++n) finish(n);
    team_.close();
  }

 private:
  using S = typename Mma::Storage;
  using Real = ForwardReal<S>;
  using C = Cell<Real>;
  using Operand = typename Mma::Operand;
  static constexpr CellId kCell = kIdOf<Cell>;
  static constexpr int kSlots = Slots<Cell>::kSlots, kG = C::kGates;
  static constexpr bool kTwoPhases = kGatePhases<C> == 2, kHasCell = C::kStates > 1;
  static_assert(may_be_resident<C>(), "no kernel keeps the weights of a cell with such phases");
  static constexpr int kPairs = team_pairs(Pass::kForward, kCell, {kTiles, kHeld});
  using Gates = SlotVector<S, kSlots>;
  using Park = Parking<parked_values(Pass::kForward, kCell, Mma::kMath)>;

  // What a thread has of a turn.
  struct Turn {
    Walk walk[kPairs];
    Real after[kPairs][C::kStates];
    Gates saved[kPairs];
  };

  const ForwardArgs& args_;
  const ForwardDirection& d_;
  Batch batch_;
  Team team_;
  Pairs<kPairs> pairs_;
  TeamProduct<Mma, kTiles, kHeld> product_;
  Park parking_;
  Tiles tiles_;
  // Of the next turn that begins a step.
  Gates gates_[kPairs];

  RNNFAST_DEVICE void load_weights(unsigned char* shared, const TeamArgs& team) {
    const S* matrix = static_cast<const S*>(d_.w_hh);
    const int64_t H = args_.H;
    const int units = pairs_.units, first = int(pairs_.first);
    const auto where = [&](int row, int, int column) -> const S* {
      const int gate = row / units;
      const int unit = first + row % units;  // 64 bits would cost the largest shape a spill
      const bool there =
          (gate < kG) & (unit < H) & (column < H);  // without a branch: all loads at once
      return there ? matrix + (gate * H + unit) * H + column : nullptr;
    };
    const bool chunks = detail::may_load_chunks(matrix, H);
    product_.template load_all<Along::kColumns>(shared, team.rows, team.slabs, matrix, chunks,
                                                where);
  }

  // --- exchanges -------------------------------------------------------------------------------

  // The one that brings phase 0, or 1, its operands at step s.
  RNNFAST_DEVICE static int exchange(int s, int phase) { return s * kGatePhases<C> + phase; }

  RNNFAST_DEVICE void put(int n, int e, int q, Real value) const {
    if (!pairs_.is_unit(q)) return;
    team_.put(n, e, pairs_.column[q], (pairs_.first + pairs_.unit[q]) * sizeof(Operand),
              Mma::operand(value.value));
  }
  RNNFAST_DEVICE void signal(int n, int e) const {
    team_.signal(n, e, pairs_.first * sizeof(Operand), pairs_.units * sizeof(Operand));
  }

  RNNFAST_DEVICE void multiply(int n, int e, int lo, int hi) {
    team_.wait(n, e);
    product_.template multiply<Team>(0, lo, hi,
                                     [&](int column) { return team_.row(n, e, column); });
  }
  RNNFAST_DEVICE Real sum(int gate, int q) const {
    return product_.sum(gate * pairs_.units + pairs_.unit[q], pairs_.column[q]);
  }

  // --- the state -------------------------------------------------------------------------------

  RNNFAST_DEVICE Walk walk(int n, int q) const {
    return batch_.walk((tiles_.first + n) * kColumns + pairs_.column[q]);
  }
  RNNFAST_DEVICE bool owns(const Walk& w, int q) const { return pairs_.is_unit(q) && w.exists; }

  RNNFAST_DEVICE void state(int n, int q, Real (&values)[C::kStates]) const {
    RNNFAST_UNROLL
    for (int i = 0; i < C::kStates; ++i) values[i] = parking_.value(n, i, q);
  }

  // As step s finds it.
  RNNFAST_DEVICE void park(int n, int q, int s, const Walk& w, const Real (&values)[C::kStates]) {
    const bool reset = batch_.reset(w, s);
    RNNFAST_UNROLL
    for (int i = 0; i < C::kStates; ++i) parking_.value(n, i, q) = reset ? 0 : values[i].value;
  }

  // The first exchange of a batch tile.
  RNNFAST_DEVICE void start(int n) {
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q)) continue;
      const Walk w = walk(n, q);
      const int64_t at = pairs_.place(w.first, q);
      Real before[C::kStates];
      before[0] = load_carried(static_cast<const S*>(d_.h0), d_.before.h, at);
      if constexpr (kHasCell) {
        before[1] = load_carried(static_cast<const S*>(d_.c0), d_.before.c, at);
      }
      park(n, q, 0, w, before);
      put(n, exchange(0, 0), q, parking_.value(n, 0, q));
    }
    if (tiles_.longest[n] > 0) signal(n, exchange(0, 0));
  }

  RNNFAST_DEVICE void finish(int n) {
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      const Walk w = walk(n, q);
      if (!owns(w, q)) continue;
      const int64_t at = pairs_.place(w.first, q);
      store_carried(static_cast<S*>(d_.h_last), d_.after.h, at, parking_.value(n, 0, q));
      if constexpr (kHasCell) {
        store_carried(static_cast<S*>(d_.c_last), d_.after.c, at, parking_.value(n, 1, q));
      }
      for (int s = tiles_.longest[n]; s < batch_.T; ++s) {
        const int64_t row = pairs_.place(batch_.row(w, s), q);
        store(static_cast<S*>(d_.y) + row, narrow<S>(0.0f));
        if constexpr (kHasCell) {
          if (d_.c != nullptr) store(d_.c + row, 0.0f);
        }
      }
    }
  }

  // --- a turn ----------------------------------------------------------------------------------

  RNNFAST_DEVICE void prefetch(int s, int n) {
    const Gates* all = static_cast<const Gates*>(d_.gates);
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q)) continue;
      gates_[q] = load(all + pairs_.place(batch_.row(walk(n, q), s), q));
    }
  }

  RNNFAST_DEVICE static void read_plain(const Gates& stored, Real (&values)[kSlots]) {
    RNNFAST_UNROLL
    for (int k = 0; k < kSlots; ++k) values[k] = widen(stored.at[k]);
  }

  // What the step leaves: nothing new where the sequence has ended.
  RNNFAST_DEVICE void keep(Turn& t, int q, int s, const Real (&before)[C::kStates],
                           const Real (&saved)[C::kSaved]) const {
    RNNFAST_UNROLL
    for (int i = 0; i < C::kStates; ++i) {
      t.after[q][i] = t.walk[q].alive(s) ? t.after[q][i] : before[i];
    }
    if constexpr (!C::kSavesOutput) t.saved[q] = encode_saved<Cell, S>(saved);
  }

  RNNFAST_DEVICE void turn(int s, int n) {
    multiply(n, exchange(s, 0), 0, kTiles);
    Turn t;
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q)) continue;
      Real in[kSlots], gx[kG], gh[kG], before[C::kStates], saved[C::kSaved];
      t.walk[q] = walk(n, q);
      read_plain(gates_[q], in);
      RNNFAST_UNROLL
      for (int g = 0; g < kG; ++g) {
        gx[g] = in[g];
        gh[g] = sum(g, q);
      }
      if constexpr (C::kOwnGate >= 0) gh[C::kOwnGate] = gh[C::kOwnGate] + in[kG];
      state(n, q, before);
      cell_forward<Cell>(args_.relu, gx, gh, before, t.after[q], saved);
      keep(t, q, s, before, saved);
    }
    hand_over(s, n, t);
  }

  // Of two phases: after the first product u = r·h goes to the others, and what will be saved is
  // parked, but gx_n where n will be.
  RNNFAST_DEVICE void reset_turn(int s, int n) {
    constexpr int kU = C::kPhases[1].operand;
    multiply(n, exchange(s, 0), 0, 2 * pairs_.units / 16);
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q)) continue;
      Real in[kSlots], before[1], after[1], saved[C::kSaved];
      read_plain(gates_[q], in);
      const Real gx[2] = {in[0], in[1]}, gh[2] = {sum(0, q), sum(1, q)};
      state(n, q, before);
      C::forward(At<0>{}, gx, gh, before, after, saved);
      saved[2] = 0;
      put(n, exchange(s, 1), q, saved[kU]);
      Gates kept = encode_saved<Cell, S>(saved);
      kept.at[2] = gates_[q].at[2];
      parking_.put(n, 1, q, kept);
    }
    signal(n, exchange(s, 1));
    const int next = tiles_.after(s, n);
    if (next >= 0) prefetch(s, next);
  }

  RNNFAST_DEVICE void candidate_turn(int s, int n) {
    multiply(n, exchange(s, 1), 2 * pairs_.units / 16, kTiles);
    Turn t;
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q)) continue;
      Real before[1], saved[C::kSaved];
      Gates kept;
      t.walk[q] = walk(n, q);
      parking_.get(n, 1, q, kept);
      decode_saved<Cell>(kept, saved);
      state(n, q, before);
      const Real gx[1] = {widen(kept.at[2])}, gh[1] = {sum(2, q)};
      C::forward(At<1>{}, gx, gh, before, t.after[q], saved);
      keep(t, q, s, before, saved);
    }
    hand_over(s, n, t);
  }

  // The end of step s: its state to the others first; then what only memory waits for.
  RNNFAST_DEVICE void hand_over(int s, int n, const Turn& t) {
    const bool last = s + 1 == tiles_.longest[n];
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q)) continue;
      park(n, q, s + 1, t.walk[q], t.after[q]);
      if (!last) put(n, exchange(s + 1, 0), q, parking_.value(n, 0, q));
    }
    // Where nothing is signalled, the barrier between these sums and the next product's, of another
    // batch tile, is the one in wait.
    if (!last) signal(n, exchange(s + 1, 0));
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (pairs_.has(q)) store_step(s, q, t);
    }
    prefetch_after(s, n);
  }

  RNNFAST_DEVICE void prefetch_after(int s, int n) {
    const int next = tiles_.after(s, n);
    if (next < 0) {
      if (s + 1 < tiles_.most) prefetch(s + 1, tiles_.after(s + 1, -1));
    } else if constexpr (!kTwoPhases) {
      prefetch(s, next);
    }
  }

  RNNFAST_DEVICE void store_step(int s, int q, const Turn& t) {
    const Walk& w = t.walk[q];
    if (!owns(w, q)) return;
    const bool alive = w.alive(s);
    const int64_t at = pairs_.place(batch_.row(w, s), q);
    store(static_cast<S*>(d_.y) + at, narrow<S>(alive ? t.after[q][0].value : 0.0f));
    if constexpr (kHasCell) {
      if (d_.c != nullptr) store(d_.c + at, alive ? t.after[q][1].value : 0.0f);
    }
    if constexpr (!C::kSavesOutput) {
      if (args_.training && alive) store(static_cast<Gates*>(d_.gates) + at, t.saved[q]);
    }
  }
};

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
RNNFAST_KERNEL(kThreads)
team_forward(RNNFAST_ARGS WithTeam<ForwardArgs> args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  TeamForward<Cell, Mma, Team, kTiles, kHeld> scan(args, args.scan.direction[block_y()], shared);
  scan.run();
}

}  // namespace rnnfast::cuda
