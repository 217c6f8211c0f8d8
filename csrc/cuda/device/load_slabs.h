// Loading a warp's part of the resident matrix: of each of its tiles the first slabs stay in
// registers, the others go to shared memory. 16 bytes at a time (chunks.h), or a value at a time
// where the matrix does not allow it.
#pragma once

#include "cuda/device/chunks.h"
#include "cuda/device/mma.h"

namespace rnnfast::cuda {

namespace detail {

inline constexpr int kSpilledAhead = 4;  // spilled slabs whose loads are on their way at once

// Loads of all slabs that stay in registers first: no round trip waits for another.
template <class Chunks, int kTiles, int kHeld, class Storage, class Place, class Spill>
RNNFAST_DEVICE void load_by_chunks(uint32_t (&held)[kTiles][kHeld][kSlabWords], int tiles,
                                   int slabs, const Storage* inside, const Place& place,
                                   const Spill& spill) {
  const auto fetch = [&](int t, int k, uint32_t (&slab)[kSlabWords]) {
    const bool there = (t < tiles) & (k < slabs);
    const auto where = place(t, k);
    Chunks::load(
        inside,
        [&](int row, int column) {
          const Storage* at = where(row, column);
          return there ? at : nullptr;
        },
        slab);
  };
  RNNFAST_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    RNNFAST_UNROLL
    for (int k = 0; k < kHeld; ++k) fetch(t, k, held[t][k]);
  }
  RNNFAST_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    RNNFAST_UNROLL
    for (int k = 0; k < kHeld; ++k) Chunks::arrange(held[t][k]);
  }
  for (int t = 0; t < tiles; ++t) {
    for (int k = kHeld; k < slabs; k += kSpilledAhead) {
      uint32_t some[kSpilledAhead][kSlabWords];
      RNNFAST_UNROLL
      for (int n = 0; n < kSpilledAhead; ++n) fetch(t, k + n, some[n]);
      RNNFAST_UNROLL
      for (int n = 0; n < kSpilledAhead; ++n) {
        Chunks::arrange(some[n]);
        if (k + n < slabs) spill(t, k + n, some[n]);
      }
    }
  }
}

template <class Mma, class Order, int kTiles, int kHeld, class Place, class Spill>
RNNFAST_DEVICE void load_by_values(uint32_t (&held)[kTiles][kHeld][kSlabWords], int tiles,
                                   int slabs, const Place& place, const Spill& spill) {
  const auto fill = [&](int t, int k, uint32_t (&slab)[kSlabWords]) {
    const auto where = place(t, k);
    const auto element = [&](int row, int column) -> uint32_t {
      const auto* at = where(row, column);
      return at != nullptr ? Mma::stored(load_once(at)) : 0;
    };
    RNNFAST_UNROLL
    for (int i = 0; i < kSlabWords; ++i) {
      const int row = Mma::row(i), column = Order::column(i, lane() & 3);
      uint32_t word = element(row, column);
      if constexpr (Mma::kPerWord == 2) word |= element(row, column + 1) << 16;
      slab[i] = word;
    }
  };
  RNNFAST_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    RNNFAST_UNROLL
    for (int k = 0; k < kHeld; ++k) {
      RNNFAST_UNROLL
      for (int i = 0; i < kSlabWords; ++i) held[t][k][i] = 0;
      if (t < tiles && k < slabs) fill(t, k, held[t][k]);
    }
  }
  for (int t = 0; t < tiles; ++t) {
    for (int k = kHeld; k < slabs; ++k) {
      uint32_t slab[kSlabWords];
      fill(t, k, slab);
      spill(t, k, slab);
    }
  }
}

}  // namespace detail

// Slab k < kHeld of tile t to held[t][k], zeros where the warp has none; the others of its tiles to
// spill(t, k, slab). place(t, k) -> where(row, column) -> const Storage*, null outside the matrix.
// `inside`: anywhere in it, as aligned as the matrix is; `chunks`: whether it may be loaded in 16
// bytes. Order: who has which columns of a slab. All lanes together.
template <class Mma, class Order, Along kAlong, int kTiles, int kHeld, class Place, class Spill>
RNNFAST_DEVICE void load_slabs(uint32_t (&held)[kTiles][kHeld][kSlabWords], int tiles, int slabs,
                               const typename Mma::Storage* inside, bool chunks, const Place& place,
                               const Spill& spill) {
  if (chunks) {
    detail::load_by_chunks<Chunks<Mma, Order, kAlong>>(held, tiles, slabs, inside, place, spill);
  } else {
    detail::load_by_values<Mma, Order>(held, tiles, slabs, place, spill);
  }
}

}  // namespace rnnfast::cuda
