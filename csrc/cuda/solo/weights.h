// The resident matrix of a warp: its tiles' first slabs in registers, the others in shared memory
// (shapes.h).
#pragma once

#include "cuda/device/load_slabs.h"
#include "cuda/device/mma.h"

namespace rnnfast::cuda {

// kTiles at most, in groups of kGroupTiles; kHeld slabs of each in registers.
template <class Mma, int kTiles, int kGroupTiles, int kHeld>
struct Weights {
  using Operand = typename Mma::Operand;
  using Storage = typename Mma::Storage;

  uint32_t held[kTiles][kHeld][kSlabWords];
  unsigned char* spilled;                // [tile of the block][slab − kHeld][2][32 lanes][16 bytes]
  int slabs, spilled_slabs, tiles, own;  // own: the warp

  // `groups` of the block; where(tile, row, column) -> const Storage* for every tile of this warp,
  // null outside the matrix. `inside`: anywhere in it, as aligned as the matrix is; `chunks`:
  // whether it may be loaded in 16 bytes.
  template <Along kAlong, class Where>
  RNNFAST_DEVICE void load_all(unsigned char* shared, int all_slabs, int groups,
                               const Storage* inside, bool chunks, const Where& where) {
    slabs = all_slabs;
    spilled_slabs = slabs > kHeld ? slabs - kHeld : 0;
    own = uniform_warp();
    tiles = groups > own ? (groups - own + kWarps - 1) / kWarps * kGroupTiles : 0;
    spilled = shared;
    const auto place = [&](int t, int k) {
      return [&where, t, k](int row, int column) { return where(t, row, k * kValues + column); };
    };
    load_slabs<Mma, Mma, kAlong>(
        held, tiles, slabs, inside, chunks, place,
        [&](int t, int k, const uint32_t (&slab)[kSlabWords]) { spill(t, k, slab); });
  }

  // sums[group][t − kFirst] += tile t of the group × the operands, from the lane's own place
  // `own_rows` (mma.h), over slabs lo .. hi, for tiles kFirst .. kFirst + kCount of each group.
  template <int kFirst, int kCount, int kChains>
  RNNFAST_DEVICE void multiply(
      typename Mma::template Sum<kChains> (&sums)[kTiles / kGroupTiles][kCount],
      const unsigned char* own_rows, int stride, int lo, int hi) const {
    // A cell of two phases has two such products, and large shapes have no registers for one.
    constexpr bool kMay = kCount == kGroupTiles && kTiles * kHeld <= 16;
    if (kMay && lo == 0 && hi >= kHeld && tiles == kTiles) {
      multiply_all<0, kFirst>(sums, own_rows, stride);
    } else {
      multiply_held<0, kFirst>(sums, own_rows, stride, lo, hi);
    }
    multiply_spilled<kFirst>(sums, own_rows, stride, lo, hi);
  }

  // sum += tile t of the warp × the operands: fewer sums at once.
  template <int kChains>
  RNNFAST_DEVICE void multiply_tile(int t, typename Mma::template Sum<kChains>& sum,
                                    const unsigned char* own_rows, int stride, int lo,
                                    int hi) const {
    RNNFAST_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      if (k >= lo && k < hi) {
        Mma::template add<0>(sum, held[t][k], Mma::load_columns(own_rows, stride, k));
      }
    }
    for (int k = lo > kHeld ? lo : kHeld; k < hi; ++k) {
      uint32_t slab[kSlabWords];
      read_spilled(t, k, slab);
      Mma::template add<0>(sum, slab, Mma::load_columns(own_rows, stride, k));
    }
  }

  // The group that this warp calls i.
  RNNFAST_DEVICE int group(int i) const { return own + i * kWarps; }

 private:
  static constexpr int kValues = kSlabBytes / int(sizeof(Operand));

  RNNFAST_DEVICE void spill(int t, int k, const uint32_t (&slab)[kSlabWords]) const {
    RNNFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const detail::Registers4 four = {
          {slab[4 * half], slab[4 * half + 1], slab[4 * half + 2], slab[4 * half + 3]}};
      store(place(t, k, half), four);
    }
  }

  RNNFAST_DEVICE detail::Registers4* place(int t, int k, int half) const {
    const int tile = group(t / kGroupTiles) * kGroupTiles + t % kGroupTiles;
    const int64_t slab = int64_t(tile) * spilled_slabs + (k - kHeld);
    return reinterpret_cast<detail::Registers4*>(spilled + slab * kSlabShared) + half * 32 + lane();
  }

  RNNFAST_DEVICE void read_spilled(int t, int k, uint32_t (&slab)[kSlabWords]) const {
    RNNFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const detail::Registers4 four = load(place(t, k, half));
      RNNFAST_UNROLL
      for (int i = 0; i < 4; ++i) slab[4 * half + i] = four.at[i];
    }
  }

  // The slabs in registers where the warp has all of them, without a question.
  template <int kSlab, int kFirst, int kCount, int kChains>
  RNNFAST_DEVICE void multiply_all(
      typename Mma::template Sum<kChains> (&sums)[kTiles / kGroupTiles][kCount],
      const unsigned char* own_rows, int stride) const {
    if constexpr (kSlab < kHeld) {
      const auto columns = Mma::load_columns(own_rows, stride, kSlab);
      RNNFAST_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        const int j = t % kGroupTiles - kFirst;
        if (j >= 0 && j < kCount) {
          Mma::template add<2 * kSlab>(sums[t / kGroupTiles][j], held[t][kSlab], columns);
        }
      }
      multiply_all<kSlab + 1, kFirst>(sums, own_rows, stride);
    }
  }

  template <int kSlab, int kFirst, int kCount, int kChains>
  RNNFAST_DEVICE void multiply_held(
      typename Mma::template Sum<kChains> (&sums)[kTiles / kGroupTiles][kCount],
      const unsigned char* own_rows, int stride, int lo, int hi) const {
    if constexpr (kSlab < kHeld) {
      if (kSlab >= lo && kSlab < hi) {
        const auto columns = Mma::load_columns(own_rows, stride, kSlab);
        RNNFAST_UNROLL
        for (int t = 0; t < kTiles; ++t) {
          const int j = t % kGroupTiles - kFirst;
          if (j >= 0 && j < kCount && t < tiles) {
            Mma::template add<2 * kSlab>(sums[t / kGroupTiles][j], held[t][kSlab], columns);
          }
        }
      }
      multiply_held<kSlab + 1, kFirst>(sums, own_rows, stride, lo, hi);
    }
  }

  template <int kFirst, int kCount, int kChains>
  RNNFAST_DEVICE void multiply_spilled(
      typename Mma::template Sum<kChains> (&sums)[kTiles / kGroupTiles][kCount],
      const unsigned char* own_rows, int stride, int lo, int hi) const {
    for (int k = lo > kHeld ? lo : kHeld; k < hi; k += 2) {
      multiply_shared<0, kFirst>(sums, own_rows, stride, k);
      if (k + 1 < hi) multiply_shared<2, kFirst>(sums, own_rows, stride, k + 1);
    }
  }

  template <int kChain, int kFirst, int kCount, int kChains>
  RNNFAST_DEVICE void multiply_shared(
      typename Mma::template Sum<kChains> (&sums)[kTiles / kGroupTiles][kCount],
      const unsigned char* own_rows, int stride, int k) const {
    const auto columns = Mma::load_columns(own_rows, stride, k);
    RNNFAST_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      const int j = t % kGroupTiles - kFirst;
      if (j >= 0 && j < kCount && t < tiles) {
        uint32_t slab[kSlabWords];
        read_spilled(t, k, slab);
        Mma::template add<kChain>(sums[t / kGroupTiles][j], slab, columns);
      }
    }
  }
};

// The products of tiles kFirst .. kFirst + kCount of each group with the operands at `own_rows`, over
// slabs lo .. hi: calls f(group, tile, d[4]) for each.
template <int kFirst, int kCount, int kChains, class Mma, int kTiles, int kGroupTiles, int kHeld,
          class F>
RNNFAST_DEVICE void products(const Weights<Mma, kTiles, kGroupTiles, kHeld>& w,
                             const unsigned char* own_rows, int stride, int lo, int hi,
                             const F& f) {
  constexpr int kGroups = kTiles / kGroupTiles;
  using Sum = typename Mma::template Sum<kChains>;
  Sum sums[Mma::kTileByTile ? 1 : kGroups][Mma::kTileByTile ? 1 : kCount];
  const auto finish = [&](int i, int t, const Sum& sum) {
    float total[4];
    Mma::finish(sum, total);
    f(i, kFirst + t, total);
  };
  if constexpr (!Mma::kTileByTile) {
    RNNFAST_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      RNNFAST_UNROLL
      for (int t = 0; t < kCount; ++t) sums[i][t].clear();
    }
    w.template multiply<kFirst, kCount, kChains>(sums, own_rows, stride, lo, hi);
  }
  RNNFAST_UNROLL
  for (int i = 0; i < kGroups; ++i) {
    RNNFAST_UNROLL
    for (int t = 0; t < kCount; ++t) {
      if constexpr (Mma::kTileByTile) {
        const int tile = i * kGroupTiles + kFirst + t;
        if (tile >= w.tiles) continue;
        sums[0][0].clear();
        w.template multiply_tile<kChains>(tile, sums[0][0], own_rows, stride, lo, hi);
        finish(i, t, sums[0][0]);
      } else {
        finish(i, t, sums[i][t]);
      }
    }
  }
}

}  // namespace rnnfast::cuda
