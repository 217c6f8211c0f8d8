// Forward of a generated cell with one product, all steps in one launch (resident.h).
//
// A step: the matrix times the operands in shared memory; the cell's step in the accumulators'
// threads; the next operand to the other set of rows; then, while others get there, what goes to
// memory, and the loads of the next step; one barrier.
#pragma once

#include "cuda/steps/resident.h"

namespace rnnfast::cuda::steps {

// Which sum stands where in a group of tiles: a thread has rows lane/4 and lane/4 + 8 of a tile, and
// is to have all planes of its units (device/fragments.h). Planes go in pairs, a plane in each half
// of a tile; the last of an odd number has both octets of units in one tile.
template <int kPlanes>
struct Grouped {
  static constexpr bool kEven = kPlanes % 2 == 0;
  static constexpr int kUnits = kEven ? 8 : 16, kTiles = kEven ? kPlanes / 2 : kPlanes;

  RNNFAST_HD static constexpr bool is_last(int tile) { return !kEven && tile == kPlanes - 1; }
  RNNFAST_HD static constexpr int plane(int tile, int half) {
    if (kEven) return 2 * tile + half;
    return is_last(tile) ? tile : tile / 2 * 2 + half;
  }
  RNNFAST_HD static constexpr int octet(int tile, int half) {
    if (kEven) return 0;
    return is_last(tile) ? half : tile % 2;
  }
};

template <class Own, class Mma, int kGroups, int kHeld>
struct ResidentForward : Resident<Own, Mma, kGroups, Grouped<Own::kPlanes>::kTiles,
                                  Grouped<Own::kPlanes>::kUnits, kHeld> {
  using Group = Grouped<Own::kPlanes>;
  using Base = Resident<Own, Mma, kGroups, Group::kTiles, Group::kUnits, kHeld>;
  using Base::args, Base::each, Base::given, Base::owns, Base::reset, Base::rows, Base::sequences,
      Base::set, Base::stride, Base::unit, Base::w;
  using typename Base::Args, typename Base::Operand, typename Base::Storage;
  static constexpr int kOctets = Base::kOctets, kPlanes = Own::kPlanes, kStates = Own::kStates;
  static constexpr int kChains = kGroups * Group::kTiles >= 3 ? 1 : 2;

  // Of the thread's units [group][octet] and sequences.
  float state[kGroups][kOctets][2][kStates] = {};
  float in[kGroups][kOctets][2][some(Own::kReads)] = {};
  float out[kGroups][kOctets][2][some(Own::kWrites)];
  float sum[kGroups][kOctets][2][kPlanes];

  RNNFAST_DEVICE ResidentForward(const Args& a, unsigned char* shared) : Base(a, shared, int(a.H)) {
    const int64_t H = a.H;
    const auto* matrix = static_cast<const Storage*>(a.matrix);
    const auto where = [&](int t, int row, int column) -> const Storage* {
      const int tile = t % Group::kTiles, half = row / 8;
      const int64_t own = int64_t(w.group(t / Group::kTiles)) * Group::kUnits +
                          Group::octet(tile, half) * 8 + row % 8;
      const bool there = (own < H) & (column < H);  // without a branch: all loads at once
      const int64_t gate = Own::gate(Group::plane(tile, half));
      return there ? matrix + (gate * H + own) * H + column : nullptr;
    };
    this->template load_weights<Along::kColumns>(int(H), where);
  }

  RNNFAST_DEVICE void run() {
    each([&](int i, int octet, int j) {
      for_each<kStates>([&](auto k) {
        constexpr int n = decltype(k)::value;
        state[i][octet][j][n] = this->load_state(args.buffers[Own::state(n)].init, i, octet, j);
      });
    });
    begin_step(0);
    sync_block();
    hand_over();
    use_resets();
    load_inputs(0);
    sync_block();
    this->turn_over();
    for (int s = 0; s < sequences.longest; ++s) step(s);
    each([&](int i, int octet, int j) {
      if (!owns(i, octet, j)) return;
      for_each<kStates>([&](auto k) {
        constexpr int n = decltype(k)::value;
        this->store_state(args.buffers[Own::state(n)].last, i, octet, j, state[i][octet][j][n]);
      });
    });
  }

 private:
  RNNFAST_DEVICE void begin_step(int s) {
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) reset[j] = this->is_reset(j, s);
  }

  // The state that the next step begins with, and its operand to the set that is not read.
  RNNFAST_DEVICE void hand_over() {
    each([&](int i, int octet, int j) {
      float s[kStates];
      RNNFAST_UNROLL
      for (int k = 0; k < kStates; ++k) s[k] = reset[j] != 0 ? 0.0f : state[i][octet][j][k];
      auto* row = reinterpret_cast<Operand*>(rows + (kColumns * stride - set) +
                                             Sequences::column(j) * stride);
      row[unit(i, octet)] = Mma::operand(Own::operand(given(i, octet), s));
    });
  }

  RNNFAST_DEVICE void load_inputs(int s) {
    each([&](int i, int octet, int j) {
      if (!sequences.alive(j, s)) return;
      for_each<Own::kReads>([&](auto k) {
        constexpr int n = decltype(k)::value;
        in[i][octet][j][n] = load(this->at(Own::read(n), sequences.row(j, s), i, octet));
      });
    });
  }

  RNNFAST_DEVICE void step(int s) {
    begin_step(s + 1);
    products<0, Group::kTiles, kChains>(
        w, rows + set + Mma::own_place(stride), stride, 0, w.slabs,
        [&](int i, int tile, const float (&total)[4]) {
          RNNFAST_UNROLL
          for (int half = 0; half < 2; ++half) {
            RNNFAST_UNROLL
            for (int j = 0; j < 2; ++j) {
              sum[i][Group::octet(tile, half)][j][Group::plane(tile, half)] = total[2 * half + j];
            }
          }
        });
    each([&](int i, int octet, int j) {
      float news[kStates];
      Own::step(given(i, octet), in[i][octet][j], state[i][octet][j], sum[i][octet][j], news,
                out[i][octet][j]);
      RNNFAST_UNROLL
      for (int k = 0; k < kStates; ++k) {
        if (sequences.alive(j, s)) state[i][octet][j][k] = news[k];
      }
    });
    hand_over();
    store_step(s);
    use_resets();
    load_inputs(s + 1);
    sync_block();
    this->turn_over();
  }

  RNNFAST_DEVICE void store_step(int s) {
    each([&](int i, int octet, int j) {
      if (!sequences.alive(j, s) || !sequences.exists(j)) return;
      const int64_t row = sequences.row(j, s);
      for_each<kStates>([&](auto k) {
        constexpr int n = decltype(k)::value;
        if (Kind(args.buffers[Own::state(n)].kind) == Kind::kNew) {
          store(this->at({Own::state(n), 0, 1, false}, row, i, octet), state[i][octet][j][n]);
        }
      });
      this->write(out[i][octet][j], row, i, octet);
    });
  }

  // The states are those that the next step begins with.
  RNNFAST_DEVICE void use_resets() {
    each([&](int i, int octet, int j) {
      RNNFAST_UNROLL
      for (int k = 0; k < kStates; ++k) {
        if (reset[j] != 0) state[i][octet][j][k] = 0;
      }
    });
  }
};

template <class Own, class Mma, int kGroups, int kHeld>
RNNFAST_KERNEL(kThreads)
resident_forward(RNNFAST_ARGS ResidentArgs<Own> args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  ResidentForward<Own, Mma, kGroups, kHeld> scan(args, shared);
  scan.run();
}

}  // namespace rnnfast::cuda::steps
