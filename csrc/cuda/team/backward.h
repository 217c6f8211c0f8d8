// The backward kernel (BPTT) of a team of blocks: one launch for all T steps, with the rows of
// W_hhᵀ of each block's hidden units held as forward holds those of W_hh.
//
// What blocks exchange are the gradients of the gates, as operands: every block gets all of them
// and computes the whole sum for its own units. (The other way, each block multiplying with the
// rows of W_hh that it has and all adding up fp32 sums of every unit, moves fewer bytes for an
// LSTM, 4 a unit instead of 8, but writes and reads them; docs/cuda.md weighs the two.)
//
// A turn, from the last step to the first: the product with the gradients of the step after this
// one completes the gradient of this step's state; the gate math; the block's part of the gates'
// gradients to the others; then, while others get there, to memory (D of layout.h), and the next
// turn's loads. A cell of two phases takes two turns a step. Gradients of h and c are carried in
// fp32; a sequence that ended hands those of its final state through.
#pragma once

#include "cuda/device/cell_steps.h"
#include "cuda/device/saved.h"
#include "cuda/team/block.h"
#include "cuda/team/product.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
class TeamBackward {
 public:
  RNNFAST_DEVICE TeamBackward(const WithTeam<BackwardArgs>& args,
                              const BackwardDirection& direction, unsigned char* shared)
      : args_(args.scan),
        d_(direction),
        batch_(args.scan.T, args.scan.B, args.scan.H, direction),
        team_(args.team, shared),
        pairs_(args.team.units, team_.rank(), args.scan.H),
        scale_(args.scan.scale != nullptr ? load_once(args.scan.scale) : 1.0f),
        unscale_(1.0f / scale_) {
    load_weights(shared + team_.shared_bytes(), args.team);
    parking_ = Park::begin(product_.end(), pairs_.units);
    tiles_ = Tiles::begin(parking_.end(args.team.tiles), team_.team(), args.team.tiles, batch_);
  }

  RNNFAST_DEVICE void run() {
    team_.open();
    for (int n = 0; n < tiles_.count; ++n) start(n);
    if (tiles_.most > 0) prefetch(tiles_.most - 1, tiles_.after(tiles_.most - 1, -1));
    for (int s = tiles_.most - 1; s >= 0; --s) {
      for (int n = tiles_.after(s, -1); n >= 0; n = tiles_.after(s, n)) {
        if constexpr (kTwoPhases) {
          candidate_turn(s, n);
        } else {
          turn(s, n);
        }
      }
      if constexpr (kTwoPhases) {
        for (int n = tiles_.after(s, -1); n >= 0; n = tiles_.after(s, n)) reset_turn(s, n);
      }
    }
    for (int n = 0; n < tiles_.count; ++n) finish(n);
    team_.close();
  }

 private:
  using C = Cell<Real>;
  using S = typename Mma::Storage;
  using Operand = typename Mma::Operand;
  static constexpr CellId kCell = kIdOf<Cell>;
  static constexpr int kSlots = Slots<Cell>::kSlots, kG = C::kGates;
  static constexpr bool kTwoPhases = kGatePhases<C> == 2, kHasCell = C::kStates > 1;
  static_assert(may_be_resident<C>(), "no kernel keeps the weights of a cell with such phases");
  static_assert(unit_step(Pass::kBackward, kCell) * sizeof(S) % 16 == 0);
  static constexpr int kPairs = team_pairs(Pass::kBackward, kCell, {kTiles, kHeld});
  static constexpr int kSentFirst = exchanged_values(Pass::kBackward, kCell, 0);
  static constexpr int kSentSecond = exchanged_values(Pass::kBackward, kCell, 1);
  static constexpr int kDgZ = 1, kDgN = 2;  // what is parked between two phases
  using Gates = SlotVector<S, kSlots>;
  using Park = Parking<parked_values(Pass::kBackward, kCell, Mma::kMath)>;

  // What a turn reads of a pair.
  struct Inputs {
    Gates saved;
    S dy, h_before, dc;
    float c_before;
    bool reset, reset_after;  // whether this step, and the one after it, began with a state of 0
  };

  const BackwardArgs& args_;
  const BackwardDirection& d_;
  Batch batch_;
  Team team_;
  Pairs<kPairs> pairs_;
  float scale_, unscale_;
  TeamProduct<Mma, kTiles, kHeld> product_;
  Park parking_;
  Tiles tiles_;
  Inputs in_[kPairs];  // of the next turn

  // Column `column` of W_hhᵀ: unit · G + gate; of two phases the units of n, and unit · 2 + (r or
  // z).
  RNNFAST_DEVICE void load_weights(unsigned char* shared, const TeamArgs& team) {
    const S* matrix = static_cast<const S*>(d_.w_hh);
    const int64_t H = args_.H;
    const auto where = [&](int row, int part, int column) -> const S* {
      const int values = sent(part);
      const int64_t unit = column / values, to = pairs_.first + row;
      const int64_t gate = kTwoPhases && part == 0 ? 2 : column % values;
      const bool there = (unit < H) & (to < H);  // without a branch: all loads at once
      return there ? matrix + (gate * H + unit) * H + to : nullptr;
    };
    // In a column of W_hhᵀ the block's rows begin at its first unit, at a multiple of 16 bytes.
    const bool chunks = detail::may_load_chunks(matrix, H);
    product_.template load_all<Along::kRows>(shared, team.rows, team.slabs, matrix, chunks, where);
  }

  // --- exchanges -------------------------------------------------------------------------------

  // The one that brings what step s sends in phase 0, or 1.
  RNNFAST_DEVICE int exchange(int n, int s, int phase) const {
    return (tiles_.longest[n] - 1 - s) * kGatePhases<C> + phase;
  }

  // Values, and bytes, of a unit in an exchange.
  RNNFAST_DEVICE static int sent(int phase) { return phase == 0 ? kSentFirst : kSentSecond; }
  RNNFAST_DEVICE static int unit_bytes(int phase) { return sent(phase) * int(sizeof(Operand)); }

  // N gradients of a unit as operands, side by side.
  template <int N>
  RNNFAST_DEVICE void put(int n, int s, int phase, int q, const Real (&values)[N]) const {
    if (!pairs_.is_unit(q)) return;
    const int64_t byte = (pairs_.first + pairs_.unit[q]) * unit_bytes(phase);
    const int e = exchange(n, s, phase);
    SlotVector<Operand, N == 3 ? 1 : N> together;
    RNNFAST_UNROLL
    for (int k = 0; k < N; ++k) {
      const Operand operand = Mma::operand(values[k].value * scale_);
      if constexpr (N == 3) {
        team_.put(n, e, pairs_.column[q], byte + k * int(sizeof(Operand)), operand);
      } else {
        together.at[k] = operand;
      }
    }
    if constexpr (N != 3) team_.put(n, e, pairs_.column[q], byte, together);
  }
  RNNFAST_DEVICE void signal(int n, int s, int phase) const {
    team_.signal(n, exchange(n, s, phase), pairs_.first * unit_bytes(phase),
                 pairs_.units * unit_bytes(phase));
  }

  // The product with what step s sent in this phase.
  RNNFAST_DEVICE void multiply(int n, int s, int phase) {
    const int e = exchange(n, s, phase);
    team_.wait(n, e);
    product_.template multiply<Team>(phase, 0, kTiles,
                                     [&](int column) { return team_.row(n, e, column); });
  }
  RNNFAST_DEVICE Real sum(int q) const {
    return product_.sum(pairs_.unit[q], pairs_.column[q]) * unscale_;
  }

  // --- the gradient of the state ---------------------------------------------------------------

  RNNFAST_DEVICE Walk walk(int n, int q) const {
    return batch_.walk((tiles_.first + n) * kColumns + pairs_.column[q]);
  }
  RNNFAST_DEVICE bool owns(const Walk& w, int q) const { return pairs_.is_unit(q) && w.exists; }

  RNNFAST_DEVICE void start(int n) {
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q)) continue;
      const Walk w = walk(n, q);
      const int64_t at = pairs_.place(w.first, q);
      parking_.value(n, 0, q) = load_carried(static_cast<const S*>(d_.dh_last), d_.after.h, at);
      if constexpr (kHasCell) {
        parking_.value(n, 1, q) = load_carried(static_cast<const S*>(d_.dc_last), d_.after.c, at);
      }
      if (owns(w, q)) store_padding(n, q, w);
    }
  }

  RNNFAST_DEVICE void store_padding(int n, int q, const Walk& w) {
    Gates zero;
    RNNFAST_UNROLL
    for (int k = 0; k < kSlots; ++k) zero.at[k] = narrow<S>(0.0f);
    for (int s = tiles_.longest[n]; s < batch_.T; ++s) {
      store(static_cast<Gates*>(d_.dgates) + pairs_.place(batch_.row(w, s), q), zero);
    }
  }

  // Completes the gradient of the state before step s, unless the sequence had ended.
  RNNFAST_DEVICE void hand_down(int n, int s, int q, const Walk& w, bool reset) {
    if (!w.alive(s)) return;
    float& dh = parking_.value(n, 0, q);
    dh = reset ? 0 : clipped(Real(dh) + sum(q), args_.clip).value;
    if constexpr (kHasCell) {
      float& dc = parking_.value(n, 1, q);
      dc = reset ? 0 : clipped(dc, args_.clip).value;
    }
  }

  RNNFAST_DEVICE void finish(int n) {
    if (tiles_.longest[n] > 0) {
      multiply(n, 0, kGatePhases<C> - 1);
      RNNFAST_UNROLL
      for (int q = 0; q < kPairs; ++q) {
        if (!pairs_.has(q)) continue;
        const Walk w = walk(n, q);
        hand_down(n, 0, q, w, batch_.reset(w, 0));
      }
    }
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      const Walk w = walk(n, q);
      if (!owns(w, q)) continue;
      const int64_t at = pairs_.place(w.first, q);
      store_carried(static_cast<S*>(d_.dh0), d_.before.h, at, parking_.value(n, 0, q));
      if constexpr (kHasCell) {
        store_carried(static_cast<S*>(d_.dc0), d_.before.c, at, parking_.value(n, 1, q));
      }
    }
  }

  // --- a turn ----------------------------------------------------------------------------------

  RNNFAST_DEVICE void prefetch(int s, int n) {
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (pairs_.has(q)) read(s, walk(n, q), q, in_[q]);
    }
  }

  RNNFAST_DEVICE void read(int s, const Walk& w, int q, Inputs& in) const {
    const int64_t row = batch_.row(w, s), at = pairs_.place(row, q);
    const int64_t before = pairs_.place(s > 0 ? batch_.row_before(w, s, row) : w.first, q);
    in.reset = batch_.reset(w, s);
    in.reset_after = batch_.reset(w, s + 1);
    const void* stored = C::kSavesOutput ? d_.y : d_.saved;
    in.saved = load_once(static_cast<const Gates*>(stored) + at);
    if (d_.dy != nullptr) in.dy = load_once(static_cast<const S*>(d_.dy) + at);
    if constexpr (C::kReadsH) {
      in.h_before = load_once(static_cast<const S*>(s > 0 ? d_.y : d_.h0) + before);
    }
    if constexpr (kHasCell) {
      in.c_before = s > 0 ? load_once(d_.c + before)
                          : load_carried(static_cast<const S*>(d_.c0), d_.c_before, before);
      if (d_.dc != nullptr) in.dc = load_once(static_cast<const S*>(d_.dc) + at);
    }
  }

  // Of the turn after (s, n): phase 1 of this step, where it has one, or the step before.
  RNNFAST_DEVICE void prefetch_after(int s, int n, bool ends_step) {
    const int next = tiles_.after(s, n);
    if (next >= 0) {
      prefetch(s, next);
    } else if (!ends_step) {
      prefetch(s, tiles_.after(s, -1));
    } else if (s > 0) {
      prefetch(s - 1, tiles_.after(s - 1, -1));
    }
  }

  // The gradient of the state after step s but for what its outputs add: first what the step after
  // this one sends down.
  RNNFAST_DEVICE void complete(int s, int n) {
    if (s + 1 == tiles_.longest[n]) return;
    multiply(n, s + 1, kGatePhases<C> - 1);
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (pairs_.has(q)) hand_down(n, s + 1, q, walk(n, q), in_[q].reset_after);
    }
  }

  // The state before the step, and the gradient of the state after it.
  RNNFAST_DEVICE void gather(int n, int q, Real (&state)[C::kStates],
                             Real (&ds_new)[C::kStates]) const {
    const Inputs& in = in_[q];
    state[0] = 0;
    if constexpr (C::kReadsH) {
      if (!in.reset) state[0] = widen(in.h_before);
    }
    ds_new[0] = parking_.value(n, 0, q);
    if (d_.dy != nullptr) ds_new[0] = ds_new[0] + Real(widen(in.dy));
    if constexpr (kHasCell) {
      state[1] = in.reset ? 0.0f : in.c_before;
      ds_new[1] = parking_.value(n, 1, q);
      if (d_.dc != nullptr) ds_new[1] = ds_new[1] + Real(widen(in.dc));
    }
  }

  RNNFAST_DEVICE S rounded(Real gradient) const { return narrow<S>(gradient.value * scale_); }

  RNNFAST_DEVICE void turn(int s, int n) {
    complete(s, n);
    Gates out[kPairs];
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q) || !walk(n, q).alive(s)) continue;
      Real state[C::kStates], ds_new[C::kStates], ds[C::kStates], saved[C::kSaved], dgx[kG],
          dgh[kG];
      gather(n, q, state, ds_new);
      decode_saved<Cell>(in_[q].saved, saved);
      cell_backward<Cell>(args_.relu, ds_new, saved, state, dgx, dgh, ds);
      RNNFAST_UNROLL
      for (int i = 0; i < C::kStates; ++i) parking_.value(n, i, q) = ds[i].value;
      put(n, s, 0, q, dgh);
      RNNFAST_UNROLL
      for (int g = 0; g < kG; ++g) out[q].at[g] = rounded(dgx[g]);
      if constexpr (C::kOwnGate >= 0) out[q].at[kG] = rounded(dgh[C::kOwnGate]);
    }
    hand_over(s, n, 0, out);
  }

  // Of two phases: the gradient of n, which goes to the others; z's is parked.
  RNNFAST_DEVICE void candidate_turn(int s, int n) {
    complete(s, n);
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q) || !walk(n, q).alive(s)) continue;
      Real state[1], ds_new[1], ds[1], saved[C::kSaved], dgx[kG], dgh[kG];
      gather(n, q, state, ds_new);
      decode_saved<Cell>(in_[q].saved, saved);
      C::backward(At<1>{}, ds_new, saved, state, dgx, dgh, ds);
      parking_.value(n, 0, q) = ds[0].value;
      parking_.value(n, kDgZ, q) = dgx[1].value;
      parking_.value(n, kDgN, q) = dgx[2].value;
      const Real candidate[1] = {dgx[2]};
      put(n, s, 0, q, candidate);
    }
    signal(n, s, 0);
    prefetch_after(s, n, false);
  }

  RNNFAST_DEVICE void reset_turn(int s, int n) {
    multiply(n, s, 0);
    Gates out[kPairs];
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      if (!pairs_.has(q) || !walk(n, q).alive(s)) continue;
      Real state[1], d[1], ds[1] = {parking_.value(n, 0, q)}, saved[C::kSaved], dgx[kG], dgh[kG];
      gather(n, q, state, d);
      d[0] = sum(q);
      decode_saved<Cell>(in_[q].saved, saved);
      C::backward(At<0>{}, d, saved, state, dgx, dgh, ds);
      const Real dg_rz[2] = {dgx[0], parking_.value(n, kDgZ, q)};
      parking_.value(n, 0, q) = ds[0].value;
      put(n, s, 1, q, dg_rz);
      out[q].at[0] = rounded(dg_rz[0]);
      out[q].at[1] = rounded(dg_rz[1]);
      out[q].at[2] = rounded(parking_.value(n, kDgN, q));
      out[q].at[3] = narrow<S>(0.0f);
    }
    hand_over(s, n, 1, out);
  }

  // The end of step s: its gradients to the others first; then what only memory waits for.
  RNNFAST_DEVICE void hand_over(int s, int n, int phase, Gates (&out)[kPairs]) {
    signal(n, s, phase);
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      const Walk w = walk(n, q);
      if (!owns(w, q)) continue;
      RNNFAST_UNROLL
      for (int k = 0; k < kSlots; ++k) {
        if (!w.alive(s)) out[q].at[k] = narrow<S>(0.0f);
      }
      store(static_cast<Gates*>(d_.dgates) + pairs_.place(batch_.row(w, s), q), out[q]);
    }
    prefetch_after(s, n, true);
  }
};

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
RNNFAST_KERNEL(kThreads)
team_backward(RNNFAST_ARGS WithTeam<BackwardArgs> args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  TeamBackward<Cell, Mma, Team, kTiles, kHeld> scan(args, args.scan.direction[block_y()], shared);
  scan.run();
}

}  // namespace rnnfast::cuda
