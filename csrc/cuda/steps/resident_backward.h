// Backward of a generated cell with one product, all steps in one launch (resident.h), with the
// transposed matrix held as forward holds it.
//
// A step, from the last to the first: what the cell does before the product, in the thread that owns
// the unit; the operands to the others; then, while they get there, what goes to memory, and the
// loads of the step before; one barrier; the product, and what the cell does with it.
#pragma once

#include "cuda/steps/resident.h"

namespace rnnfast::cuda::steps {

template <class Own, class Mma, int kTiles, int kHeld>
struct ResidentBackward : Resident<Own, Mma, kTiles, 1, 16, kHeld> {
  using Base = Resident<Own, Mma, kTiles, 1, 16, kHeld>;
  using Base::args, Base::each, Base::given, Base::is_unit, Base::owns, Base::reset, Base::rows,
      Base::sequences, Base::set, Base::stride, Base::unit, Base::w;
  using typename Base::Args, typename Base::Operand, typename Base::Storage;
  static constexpr int kOctets = 2, kPlanes = Own::kPlanes, kStates = Own::kStates;
  static constexpr int kChains = kTiles == 1 ? 4 : (kTiles == 2 ? 2 : 1);

  float scale, unscale;
  // Of the thread's units [tile][octet] and sequences: the gradients of the state after the step at
  // hand, later of that before it; those of the outputs; what else the step reads.
  float d[kTiles][kOctets][2][kStates], dy[kTiles][kOctets][2][kStates] = {};
  float in[kTiles][kOctets][2][some(Own::kReads)] = {};
  float out[kTiles][kOctets][2][some(Own::kWrites)];
  float kept[kTiles][kOctets][2][some(Own::kKept)];
  float added[kTiles][kOctets][2][some(Own::kAdded)] = {};

  RNNFAST_DEVICE ResidentBackward(const Args& a, unsigned char* shared)
      : Base(a, shared, int(a.H) * kPlanes) {
    scale = a.scale != nullptr ? load_once(a.scale) : 1.0f;
    unscale = 1.0f / scale;
    const int64_t H = a.H;
    const auto* matrix = static_cast<const Storage*>(a.matrix);
    // Column `column` of the transposed matrix: unit · kPlanes + plane.
    const auto where = [&](int t, int row, int column) -> const Storage* {
      const int64_t from = column / kPlanes, gate = Own::gate(column % kPlanes);
      const int64_t to = int64_t(w.group(t)) * 16 + row;
      const bool there = (from < H) & (to < H);  // without a branch: all loads at once
      return there ? matrix + (gate * H + from) * H + to : nullptr;
    };
    this->template load_weights<Along::kRows>(int(H) * kPlanes, where);
  }

  RNNFAST_DEVICE void run() {
    each([&](int i, int octet, int j) {
      for_each<kStates>([&](auto k) {
        constexpr int n = decltype(k)::value;
        d[i][octet][j][n] = this->load_state(args.buffers[Own::state(n)].init, i, octet, j);
      });
    });
    load_inputs(sequences.longest - 1);
    sync_block();
    for (int s = sequences.longest - 1; s >= 0; --s) step(s);
    each([&](int i, int octet, int j) {
      if (owns(i, octet, j)) store_ends(i, octet, j);
    });
  }

 private:
  RNNFAST_DEVICE void store_ends(int i, int octet, int j) const {
    for_each<kStates>([&](auto k) {
      constexpr int n = decltype(k)::value;
      this->store_state(args.buffers[Own::state(n)].last, i, octet, j, d[i][octet][j][n]);
    });
    for_each<Own::kAdded>([&](auto k) {
      constexpr int n = decltype(k)::value;
      store(this->at(Own::added(n), sequences.first(j), i, octet), added[i][octet][j][n]);
    });
  }

  RNNFAST_DEVICE void load_inputs(int s) {
    if (s < 0) return;
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) reset[j] = this->is_reset(j, s);
    each([&](int i, int octet, int j) {
      if (!sequences.alive(j, s)) return;
      const int64_t row = sequences.row(j, s);
      for_each<kStates>([&](auto k) {
        constexpr int n = decltype(k)::value;
        if (args.buffers[Own::output(n)].base == nullptr) return;
        dy[i][octet][j][n] = load(this->at({Own::output(n), 0, 1, false}, row, i, octet));
      });
      for_each<Own::kReads>([&](auto k) {
        constexpr int n = decltype(k)::value;
        constexpr Element from = Own::read(n);
        in[i][octet][j][n] =
            from.old ? state_before(from, s, i, octet, j) : load(this->at(from, row, i, octet));
      });
    });
  }

  RNNFAST_DEVICE float state_before(Element from, int s, int i, int octet, int j) const {
    if (reset[j] != 0) return 0.0f;
    if (s == 0) return this->load_state(args.buffers[from.buffer].init, i, octet, j);
    return load(this->at(from, sequences.row(j, s - 1), i, octet));
  }

  // The gradients that the product multiplies, side by side.
  RNNFAST_DEVICE void publish(const float (&q)[kPlanes], int i, int octet, int j) const {
    constexpr bool kTogether = (kPlanes & (kPlanes - 1)) == 0;
    auto* row = reinterpret_cast<Operand*>(rows + set + Sequences::column(j) * stride) +
                unit(i, octet) * kPlanes;
    SlotVector<Operand, kTogether ? kPlanes : 1> together;
    RNNFAST_UNROLL
    for (int p = 0; p < kPlanes; ++p) {
      const Operand operand = Mma::operand(q[p] * scale);
      if constexpr (kTogether) {
        together.at[p] = operand;
      } else {
        row[p] = operand;
      }
    }
    if constexpr (kTogether) store(reinterpret_cast<decltype(together)*>(row), together);
  }

  RNNFAST_DEVICE void step(int s) {
    const bool was_reset[2] = {reset[0] != 0, reset[1] != 0};
    each([&](int i, int octet, int j) {
      if (!sequences.alive(j, s)) return;
      float (&own)[kStates] = d[i][octet][j];
      float incoming[kStates], q[kPlanes];
      RNNFAST_UNROLL
      for (int k = 0; k < kStates; ++k) incoming[k] = own[k] + dy[i][octet][j][k];
      Own::before(given(i, octet), in[i][octet][j], incoming, q, kept[i][octet][j],
                  out[i][octet][j], own, added[i][octet][j]);
      publish(q, i, octet, j);
    });
    each([&](int i, int octet, int j) {
      if (!sequences.alive(j, s) || !sequences.exists(j)) return;
      this->write(out[i][octet][j], sequences.row(j, s), i, octet);
    });
    load_inputs(s - 1);
    sync_block();
    products<0, 1, kChains>(w, rows + set + Mma::own_place(stride), stride, 0, w.slabs,
                            [&](int i, int, const float (&total)[4]) {
                              RNNFAST_UNROLL
                              for (int octet = 0; octet < kOctets; ++octet) {
                                RNNFAST_UNROLL
                                for (int j = 0; j < 2; ++j) {
                                  if (!is_unit(i, octet) || !sequences.alive(j, s)) continue;
                                  finish(total[2 * octet + j] * unscale, was_reset[j], i, octet, j);
                                }
                              }
                            });
    this->turn_over();
  }

  // The gradients of the state before the step are complete.
  RNNFAST_DEVICE void finish(float x, bool was_reset, int i, int octet, int j) {
    float (&own)[kStates] = d[i][octet][j];
    Own::after(given(i, octet), x, kept[i][octet][j], own, added[i][octet][j]);
    RNNFAST_UNROLL
    for (int k = 0; k < kStates; ++k) {
      own[k] = was_reset ? 0.0f : limit_in_time(own[k], args.bound, args.limit);
    }
  }
};

template <class Own, class Mma, int kTiles, int kHeld>
RNNFAST_KERNEL(kThreads)
resident_backward(RNNFAST_ARGS ResidentArgs<Own> args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  ResidentBackward<Own, Mma, kTiles, kHeld> scan(args, shared);
  scan.run();
}

}  // namespace rnnfast::cuda::steps
