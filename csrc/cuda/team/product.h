// The product of a team's block: its rows of the resident matrix times the operands of 8 sequences.
// The 8 warps split the columns; their sums meet in shared memory.
//
// The order of columns within a slab is free as long as matrix and operands agree. Here a lane's
// four words of a slab of operands lie side by side, so that it reads them at once, from wherever
// they are, and no ldmatrix is needed.
#pragma once

#include "cuda/device/load_slabs.h"
#include "cuda/device/mma.h"
#include "cuda/team/shapes.h"
#include "cuda/team/team.h"

namespace rnnfast::cuda {

// Columns of a policy's slabs as lanes read them.
template <class Mma>
struct SideBySide {
  using Columns = typename Mma::Columns;
  static constexpr int kLoads = Mma::kTileByTile ? kColumns : 1;  // of 16 bytes

  // Of the slab, what register i of the matrix begins with.
  static constexpr bool kSideBySide = true;
  RNNFAST_DEVICE static int column(int i, int q) {
    if constexpr (Mma::kTileByTile) return Mma::column(i, q);
    if constexpr (Mma::kPerWord == 2) return q * 8 + (i >> 1) * 2;
    return q * 4 + (i >> 1);
  }

  // rows(column of the tile) -> the bytes of a sequence's slab.
  template <class Team, class Rows>
  RNNFAST_DEVICE static Columns load(const Rows& rows) {
    Columns columns;
    if constexpr (Mma::kTileByTile) {
      RNNFAST_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        const Word16 word = Team::read(rows(n) + (lane() & 3) * 16);
        RNNFAST_UNROLL
        for (int k = 0; k < 4; ++k) columns.at[n][k] = float_of(word.at[k]);
      }
    } else {
      const Word16 word = Team::read(rows(lane() / 4) + (lane() & 3) * 16);
      RNNFAST_UNROLL
      for (int k = 0; k < 4; ++k) columns.at[k] = word.at[k];
    }
    return columns;
  }
};

// kTiles tiles at most, kHeld slabs of each in registers.
template <class Mma, int kTiles, int kHeld>
class TeamProduct {
 public:
  using Operand = typename Mma::Operand;
  using Storage = typename Mma::Storage;
  static constexpr int kValues = kSlabBytes / int(sizeof(Operand));

  // tiles of the block; slabs of the matrix's first and second part (0: there is none).
  // where(row, part, column) -> const Storage*, null outside the matrix. `inside`: anywhere in it,
  // as aligned as the matrix is; `chunks`: whether it may be loaded in 16 bytes.
  template <Along kAlong, class Where>
  RNNFAST_DEVICE void load_all(unsigned char* shared, int tiles, const int (&slabs)[2],
                               const Storage* inside, bool chunks, const Where& where) {
    tiles_ = tiles;
    // A register more, which the largest shape does not have.
    own_ = kTiles < 8 ? uniform_warp() : warp();
    first_ = share(own_, slabs[0]);
    slabs_ = first_ + share(own_, slabs[1]);
    const int most = share(0, slabs[0]) + share(0, slabs[1]);
    const int64_t bytes = int64_t(most > kHeld ? most - kHeld : 0) * tiles * kSlabShared;  // a warp
    spilled_ = shared + own_ * bytes;
    sums_ = reinterpret_cast<float*>(shared + kWarps * bytes);
    load_slabs<Mma, SideBySide<Mma>, kAlong>(
        held_, tiles_, slabs_, inside, chunks, [&](int t, int k) { return in_slab(t, k, where); },
        [&](int t, int k, const uint32_t (&slab)[kSlabWords]) { spill(t, k, slab); });
  }

  // Bytes of shared memory, from load_all's on.
  RNNFAST_DEVICE unsigned char* end() const {
    return reinterpret_cast<unsigned char*>(sums_ + kWarps * kColumns * kSumStride);
  }

  // Tiles lo … hi of `part` times the operands that rows(column of the tile) begin. A barrier of
  // the block stands before whoever calls sum() next, and another must before the next multiply:
  // that of Team::signal between two products of a batch tile, that of Team::wait between two tiles.
  template <class Team, class Rows>
  RNNFAST_DEVICE void multiply(int part, int lo, int hi, const Rows& rows) {
    const int from = part == 0 ? 0 : first_, to = part == 0 ? first_ : slabs_;
    const auto load = [&](int k) {
      const int64_t slab = (own_ + int64_t(kWarps) * (k - from)) * kSlabBytes;
      return SideBySide<Mma>::template load<Team>([&](int n) { return rows(n) + slab; });
    };
    if (hi > tiles_) hi = tiles_;
    if constexpr (Mma::kTileByTile) {
      RNNFAST_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        if (t >= lo && t < hi) multiply_tile(t, from, to, load);
      }
    } else {
      multiply_tiles(lo, hi, from, to, load);
    }
    sync_block();
  }

  // Row `row` of the product for a sequence: the warps' sums, in their order.
  RNNFAST_DEVICE float sum(int row, int column) const {
    const float* at = sums_ + column * kSumStride + row;
    float all = at[0];
    RNNFAST_UNROLL
    for (int w = 1; w < kWarps; ++w) all += at[w * kColumns * kSumStride];
    return all;
  }

 private:
  static constexpr int kSumStride = sum_stride(kTiles);
  static constexpr int kChains = kTiles >= 3 ? 1 : (kTiles == 2 ? 2 : 4);
  static constexpr int kAhead = kHeld < 4 ? kHeld : 4;  // loads that are on their way at once
  using Sum = typename Mma::template Sum<kChains>;
  using Columns = typename Mma::Columns;

  uint32_t held_[kTiles][kHeld][kSlabWords];
  unsigned char* spilled_;           // [slab − kHeld][tile][2][32 lanes][16 bytes], of this warp
  float* sums_;                      // [warp][column of the tile][row], a row's end padded
  int tiles_, first_, slabs_, own_;  // own_: the warp

  // Slabs of a warp.
  RNNFAST_DEVICE static int share(int w, int slabs) {
    return slabs > w ? (slabs - w + kWarps - 1) / kWarps : 0;
  }

  RNNFAST_DEVICE Word16* spilled(int t, int k, int half) const {
    const int64_t slab = int64_t(k - kHeld) * tiles_ + t;
    return reinterpret_cast<Word16*>(spilled_ + slab * kSlabShared) + half * 32 + lane();
  }

  // Where a value of a slab is: at(row of the tile, column of the slab).
  template <class Where>
  RNNFAST_DEVICE auto in_slab(int t, int k, const Where& where) const {
    const int part = k < first_ ? 0 : 1;
    const int begin = (own_ + kWarps * (k - (part == 0 ? 0 : first_))) * kValues;
    return [=, &where](int row, int column) { return where(t * 16 + row, part, begin + column); };
  }

  RNNFAST_DEVICE void spill(int t, int k, const uint32_t (&slab)[kSlabWords]) const {
    RNNFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      *spilled(t, k, half) =
          Word16{{slab[4 * half], slab[4 * half + 1], slab[4 * half + 2], slab[4 * half + 3]}};
    }
  }

  RNNFAST_DEVICE void read_spilled(int t, int k, uint32_t (&slab)[kSlabWords]) const {
    RNNFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Word16 four = *spilled(t, k, half);
      RNNFAST_UNROLL
      for (int i = 0; i < 4; ++i) slab[4 * half + i] = four.at[i];
    }
  }

  // Several loads at once, then what they are for.
  template <class Load>
  RNNFAST_DEVICE void multiply_tiles(int lo, int hi, int from, int to, const Load& load) {
    Sum sums[kTiles];
    RNNFAST_UNROLL
    for (int t = 0; t < kTiles; ++t) sums[t].clear();
    multiply_held<0>(sums, lo, hi, from, to, load);
    for (int k = from > kHeld ? from : kHeld; k < to; k += kAhead) {
      multiply_spilled(sums, lo, hi, k, to, load);
    }
    RNNFAST_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      if (t >= lo && t < hi) keep(t, sums[t]);
    }
  }

  template <int kFirst, class Load>
  RNNFAST_DEVICE void multiply_held(Sum (&sums)[kTiles], int lo, int hi, int from, int to,
                                    const Load& load) {
    if constexpr (kFirst < kHeld) {
      Columns columns[kAhead] = {};
      RNNFAST_UNROLL
      for (int k = 0; k < kAhead; ++k) {
        if (kFirst + k < kHeld && kFirst + k >= from && kFirst + k < to) {
          columns[k] = load(kFirst + k);
        }
      }
      add_held<kFirst, 0>(sums, lo, hi, from, to, columns);
      multiply_held<kFirst + kAhead>(sums, lo, hi, from, to, load);
    }
  }

  template <int kFirst, int k>
  RNNFAST_DEVICE void add_held(Sum (&sums)[kTiles], int lo, int hi, int from, int to,
                               const Columns (&columns)[kAhead]) {
    if constexpr (k < kAhead && kFirst + k < kHeld) {
      if (kFirst + k >= from && kFirst + k < to) {
        RNNFAST_UNROLL
        for (int t = 0; t < kTiles; ++t) {
          if (t >= lo && t < hi)
            Mma::template add<2 * k>(sums[t], held_[t][kFirst + k], columns[k]);
        }
      }
      add_held<kFirst, k + 1>(sums, lo, hi, from, to, columns);
    }
  }

  template <class Load>
  RNNFAST_DEVICE void multiply_spilled(Sum (&sums)[kTiles], int lo, int hi, int from, int to,
                                       const Load& load) {
    Columns columns[kAhead] = {};
    RNNFAST_UNROLL
    for (int k = 0; k < kAhead; ++k) {
      if (from + k < to) columns[k] = load(from + k);
    }
    add_spilled<0>(sums, lo, hi, from, to, columns);
  }

  template <int k>
  RNNFAST_DEVICE void add_spilled(Sum (&sums)[kTiles], int lo, int hi, int from, int to,
                                  const Columns (&columns)[kAhead]) {
    if constexpr (k < kAhead) {
      if (from + k < to) {
        RNNFAST_UNROLL
        for (int t = 0; t < kTiles; ++t) {
          if (t >= lo && t < hi) {
            uint32_t slab[kSlabWords];
            read_spilled(t, from + k, slab);
            Mma::template add<2 * k>(sums[t], slab, columns[k]);
          }
        }
      }
      add_spilled<k + 1>(sums, lo, hi, from, to, columns);
    }
  }

  template <class Load>
  RNNFAST_DEVICE void multiply_tile(int t, int from, int to, const Load& load) {
    Sum sum;
    sum.clear();
    RNNFAST_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      if (k >= from && k < to) Mma::template add<0>(sum, held_[t][k], load(k));
    }
    for (int k = from > kHeld ? from : kHeld; k < to; ++k) {
      uint32_t slab[kSlabWords];
      read_spilled(t, k, slab);
      Mma::template add<0>(sum, slab, load(k));
    }
    keep(t, sum);
  }

  RNNFAST_DEVICE void keep(int t, const Sum& sum) {
    float total[4];
    Mma::finish(sum, total);
    RNNFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      RNNFAST_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int column = (lane() & 3) * 2 + j;
        sums_[(own_ * kColumns + column) * kSumStride + t * 16 + half * 8 + lane() / 4] =
            total[2 * half + j];
      }
    }
  }
};

}  // namespace rnnfast::cuda
