// The sequences of a batch and the walk of each over its steps.
#pragma once

#include "cuda/device/device.h"
#include "cuda/device/slabs.h"
#include "scan/rules.h"

namespace rnnfast::cuda {

// One sequence; past the batch, a copy of the last one, so that loads need no check and walk as
// that one's own thread does: only stores ask `exists`.
struct Walk {
  int64_t batch;  // index in the batch
  int64_t first;  // where its state begins in a tensor [B, H]
  int length;
  bool exists;

  RNNFAST_DEVICE bool alive(int s) const { return s < length; }
};

// What all have in common. Where rows begin is counted in units, of tensors [T, B, H].
struct Batch {
  int T;
  int64_t B, H, step;      // step: units of one of T
  const int64_t* lengths;  // [B], or null
  const bool* resets;      // [T, B], or null
  bool reverse;

  template <class Direction>
  RNNFAST_DEVICE Batch(int64_t steps, int64_t all, int64_t units, const Direction& d)
      : T(int(steps)),
        B(all),
        H(units),
        step(all * units),
        lengths(d.lengths),
        resets(d.resets),
        reverse(d.reverse) {}

  RNNFAST_DEVICE Walk walk(int64_t b) const {
    const int64_t own = b < B ? b : B - 1;
    return {own, own * H, length_of(own), b < B};
  }

  RNNFAST_DEVICE int length_of(int64_t b) const {
    if (b >= B) return 0;
    return lengths != nullptr ? int(within(lengths[b], T)) : T;
  }

  // The longest of the kColumns sequences of a tile.
  RNNFAST_DEVICE int longest(int64_t tile) const {
    int most = 0;
    for (int n = 0; n < kColumns; ++n) {
      const int l = length_of(tile * kColumns + n);
      if (l > most) most = l;
    }
    return most;
  }

  // Where the row of the s-th step begins; of a step past the end, the row that is to be zeroed.
  RNNFAST_DEVICE int64_t row(const Walk& w, int s) const { return time(w, s) * step + w.first; }
  // Of the step before it, s > 0, from that: of a sequence that has ended, another row of it.
  RNNFAST_DEVICE int64_t row_before(const Walk& w, int s, int64_t row) const {
    return reverse && w.alive(s) ? row + step : row - step;
  }
  RNNFAST_DEVICE int time(const Walk& w, int s) const {
    return reverse && s < w.length ? w.length - 1 - s : s;
  }

  // Whether the state is replaced by 0 before the s-th step.
  RNNFAST_DEVICE bool reset(const Walk& w, int s) const {
    return resets != nullptr && w.alive(s) && resets[time(w, s) * B + w.batch];
  }
};

// The 8 sequences of a block of the solo kernels. A thread's two are those of its accumulators'
// columns.
struct Sequences {
  Batch all;
  int T;
  int longest;  // of the block's
  int count;    // that exist
  Walk walk[2];

  template <class Direction>
  RNNFAST_DEVICE Sequences(int64_t steps, int64_t B, int64_t H, int tile, const Direction& d)
      : all(steps, B, H, d), T(int(steps)), longest(all.longest(tile)) {
    const int64_t left = B - int64_t(tile) * kColumns;
    count = left < kColumns ? int(left) : kColumns;
    RNNFAST_UNROLL
    for (int j = 0; j < 2; ++j) walk[j] = all.walk(int64_t(tile) * kColumns + column(j));
  }

  // Column of the tile of the thread's j-th sequence.
  RNNFAST_DEVICE static int column(int j) { return (lane() & 3) * 2 + j; }
  RNNFAST_DEVICE bool exists(int j) const { return column(j) < count; }
  RNNFAST_DEVICE bool alive(int j, int s) const { return walk[j].alive(s); }
  // Where in [T, B] the s-th step stands.
  RNNFAST_DEVICE int64_t reset_place(int j, int s) const {
    return all.time(walk[j], s) * all.B + walk[j].batch;
  }
  RNNFAST_DEVICE int64_t first(int j) const { return walk[j].first; }
  RNNFAST_DEVICE int64_t row(int j, int s) const { return all.row(walk[j], s); }
};

}  // namespace rnnfast::cuda
