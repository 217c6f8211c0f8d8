// Loading the resident matrix 16 bytes at a time. What lies side by side in memory is a part of a
// row of it (forward), or of a column (backward: the matrix is W_hhᵀ): a chunk. A lane loads two
// chunks of a slab, of its upper and of its lower 8 rows; shuffles then leave each value in the
// thread and register where the product has it. All lanes together; the same numbers as one by one.
#pragma once

#include "cuda/device/mma.h"

namespace rnnfast::cuda {

enum class Along { kRows, kColumns };

namespace detail {

// Whether every chunk that begins at a multiple of a chunk's values, in a row of `length` values
// from `first` on, is aligned.
template <class S>
RNNFAST_DEVICE bool may_load_chunks(const S* first, int64_t length) {
  constexpr int kChunk = 16 / int(sizeof(S));
  return length % kChunk == 0 && reinterpret_cast<uintptr_t>(first) % 16 == 0;
}

// Four lanes 2^kShift apart have four words each: the n-th of them gets the n-th of everyone.
template <int kShift>
RNNFAST_DEVICE void transpose_words(uint32_t (&words)[4]) {
  const int own = lane() >> kShift;
  RNNFAST_UNROLL
  for (int bit = 1; bit < 4; bit *= 2) {
    RNNFAST_UNROLL
    for (int k = 0; k < 4; ++k) {
      if ((k & bit) != 0) continue;
      const bool upper = (own & bit) != 0;
      const uint32_t give = upper ? words[k] : words[k + bit];
      const uint32_t got = shuffle_xor(kFullWarp, give, bit << kShift);
      words[k] = upper ? got : words[k];
      words[k + bit] = upper ? words[k + bit] : got;
    }
  }
}

// 8 × 8 values of 16 bits, row lane/4, columns 2·(lane%4) and the next: the transposed.
RNNFAST_DEVICE uint32_t transpose_halves(uint32_t word) {
  const int source = (lane() & 3) * 8 + lane() / 8;
  const uint32_t low = shuffle(kFullWarp, word, source);
  const uint32_t high = shuffle(kFullWarp, word, source + 4);
  return (lane() & 4) != 0 ? low >> 16 | (high & 0xFFFF0000u) : (low & 0xFFFFu) | high << 16;
}

}  // namespace detail

// Order: who has which columns of a slab, a policy of mma.h or SideBySide (team/product.h).
template <class Mma, class Order, Along kAlong>
struct Chunks {
  using S = typename Mma::Storage;
  static constexpr bool kPairs = Mma::kPerWord == 2;

  // Where this lane's chunk begins in the slab.
  RNNFAST_DEVICE static int row(int half) {
    if constexpr (kAlong == Along::kColumns) return half * 8 + lane() / 4;
    return half * 8 + (kPairs ? 0 : lane() / 16 * 4);
  }
  RNNFAST_DEVICE static int column() {
    if constexpr (kAlong == Along::kColumns) return (lane() & 3) * (16 / int(sizeof(S)));
    if constexpr (kPairs) return Order::column(word(lane() & 3), lane() / 8) + (lane() / 4 & 1);
    return Order::column(word(lane() / 4 & 3), lane() & 3);
  }

  // Two chunks, where(row, column) -> const S*, or null outside the matrix, as they are in memory.
  template <class Where>
  RNNFAST_DEVICE static void load(const S* inside, const Where& where,
                                  uint32_t (&slab)[kSlabWords]) {
    RNNFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      const S* at = where(row(half), column());
      const auto four =
          load_once(reinterpret_cast<const detail::Registers4*>(at != nullptr ? at : inside));
      RNNFAST_UNROLL
      for (int k = 0; k < 4; ++k) slab[4 * half + k] = at != nullptr ? four.at[k] : 0;
    }
  }

  // From there to where the product has them.
  RNNFAST_DEVICE static void arrange(uint32_t (&slab)[kSlabWords]) {
    uint32_t made[kSlabWords];
    RNNFAST_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t words[4] = {slab[4 * half], slab[4 * half + 1], slab[4 * half + 2],
                           slab[4 * half + 3]};
      if constexpr (kAlong == Along::kRows && !kPairs) {
        detail::transpose_words<2>(words);
      } else if constexpr (kAlong == Along::kRows || !Order::kSideBySide) {
        detail::transpose_words<0>(words);
      }
      RNNFAST_UNROLL
      for (int k = 0; k < 4; ++k) {
        if constexpr (kAlong == Along::kRows && kPairs)
          words[k] = detail::transpose_halves(words[k]);
        if constexpr (!kPairs) words[k] = Mma::stored(float_of(words[k]));
        made[half * kHalfStep + word(k)] = words[k];
      }
    }
    RNNFAST_UNROLL
    for (int i = 0; i < kSlabWords; ++i) slab[i] = made[i];
  }

 private:
  // Registers of the upper rows: their k-th; how far those of the lower ones are from them.
  static constexpr int kHalfStep = Mma::kTileByTile ? 4 : 1;
  RNNFAST_DEVICE static constexpr int word(int k) { return Mma::kTileByTile ? k : 2 * k; }
};

}  // namespace rnnfast::cuda
