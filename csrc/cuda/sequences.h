// The 8 sequences of a block and the walk of each over its steps.
#pragma once

#include "cuda/device.h"
#include "cuda/shapes.h"

namespace rnnfast::cuda {

// A thread's two of them are those of its accumulators' columns: first() and first() + 1.
struct Sequences {
  int64_t T, B;
  int64_t first;       // of the block, in the batch
  const bool* resets;  // [T, B], or null
  bool reverse;
  int64_t length[2];  // of the thread's two; 0 outside the batch
  int64_t longest;    // of the block's

  template <class Direction>
  RNNFAST_DEVICE Sequences(int64_t steps, int64_t batch, int tile, const Direction& d)
      : T(steps),
        B(batch),
        first(int64_t(tile) * kColumns),
        resets(d.resets),
        reverse(d.reverse),
        longest(0) {
    for (int n = 0; n < kColumns; ++n) {
      const int64_t l = length_of(d.lengths, first + n);
      if (l > longest) longest = l;
    }
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) length[j] = length_of(d.lengths, batch_index(j));
  }

  // Column of the tile, and index in the batch, of the thread's j-th sequence.
  RNNFAST_DEVICE static int column(int j) { return (lane() & 3) * 2 + j; }
  RNNFAST_DEVICE int64_t batch_index(int j) const { return first + column(j); }
  RNNFAST_DEVICE bool exists(int j) const { return batch_index(j) < B; }
  RNNFAST_DEVICE bool alive(int j, int64_t s) const { return s < length[j]; }

  // Row t·B + b of its s-th step; of a step past its end, the row that is to be zeroed then.
  RNNFAST_DEVICE int64_t row(int j, int64_t s) const {
    const int64_t t = reverse && s < length[j] ? length[j] - 1 - s : s;
    return t * B + batch_index(j);
  }

  // Whether the state is replaced by 0 before its s-th step.
  RNNFAST_DEVICE bool reset(int j, int64_t s) const {
    return resets != nullptr && alive(j, s) && resets[row(j, s)];
  }

 private:
  RNNFAST_DEVICE int64_t length_of(const int64_t* lengths, int64_t b) const {
    if (b >= B) return 0;
    return lengths != nullptr ? lengths[b] : T;
  }
};

}  // namespace rnnfast::cuda
