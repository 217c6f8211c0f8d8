// The 8 sequences of a block and the walk of each over its steps.
#pragma once

#include "cuda/device.h"
#include "cuda/shapes.h"

namespace rnnfast::cuda {

// A thread's two are those of its accumulators' columns. Loads need no check: past the batch they
// stay at its last sequence, and only stores ask exists().
struct Sequences {
  int T;
  int64_t B;
  int64_t batch[2];    // index in the batch of the thread's two
  int length[2];       // 0 outside the batch
  int longest;         // of the block's
  const bool* resets;  // [T, B], or null
  bool reverse;

  template <class Direction>
  RNNFAST_DEVICE Sequences(int64_t steps, int64_t all, int tile, const Direction& d)
      : T(int(steps)), B(all), longest(0), resets(d.resets), reverse(d.reverse) {
    const int64_t first = int64_t(tile) * kColumns;
    for (int n = 0; n < kColumns; ++n) {
      const int l = length_of(d.lengths, first + n);
      if (l > longest) longest = l;
    }
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int64_t b = first + column(j);
      length[j] = length_of(d.lengths, b);
      batch[j] = b < B ? b : B - 1;
      outside_[j] = b >= B;
    }
  }

  // Column of the tile of the thread's j-th sequence.
  RNNFAST_DEVICE static int column(int j) { return (lane() & 3) * 2 + j; }
  RNNFAST_DEVICE bool exists(int j) const { return !outside_[j]; }
  RNNFAST_DEVICE bool alive(int j, int s) const { return s < length[j]; }

  // Row t·B + b of its s-th step; of a step past its end, the row that is to be zeroed then.
  RNNFAST_DEVICE int64_t row(int j, int s) const {
    const int t = reverse && s < length[j] ? length[j] - 1 - s : s;
    return t * B + batch[j];
  }

  // Whether the state is replaced by 0 before its s-th step.
  RNNFAST_DEVICE bool reset(int j, int s) const {
    return resets != nullptr && alive(j, s) && resets[row(j, s)];
  }

 private:
  bool outside_[2];

  RNNFAST_DEVICE int length_of(const int64_t* lengths, int64_t b) const {
    if (b >= B) return 0;
    return lengths != nullptr ? int(lengths[b]) : T;
  }
};

}  // namespace rnnfast::cuda
