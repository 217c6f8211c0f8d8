// The part of a step that needs whole rows: a block has a sequence, reduces what it must, and then
// does what is pointwise. Where there is nothing to reduce, several blocks share a sequence's units.
#pragma once

#include <limits>

#include "cuda/steps/step.h"

namespace rnnfast::cuda::steps {

inline constexpr int kMostThreads = 256;
inline constexpr float kLeast = -std::numeric_limits<float>::infinity();

template <class Step>
struct RowsArgs {
  Step step;
  int64_t parts;  // blocks of a sequence
};

// The base of the generated bodies. All threads of a block call its functions together.
template <class Step>
struct RowBody : Body<Step> {
  const int64_t part, parts;

  RNNFAST_DEVICE RowBody(const RowsArgs<Step>& args, const Sequence& sequence, int64_t own)
      : Body<Step>(args.step, sequence), part(own), parts(args.parts) {}

  // body(j) for all of `width` units, each by one thread.
  template <class F>
  RNNFAST_DEVICE void every(int64_t width, const F& body) const {
    for (int64_t j = thread_index(); j < width; j += block_threads()) body(j);
  }

  // body(j) for this block's units.
  template <class F>
  RNNFAST_DEVICE void units(int64_t width, const F& body) const {
    const int64_t stride = parts * block_threads();
    for (int64_t j = part * block_threads() + thread_index(); j < width; j += stride) body(j);
  }

  // Whether this thread writes what is one number of the sequence.
  RNNFAST_DEVICE bool writes() const { return part == 0 && thread_index() == 0; }

  // Each value over all threads, for all of them: the first kSums are added, in a fixed order, of
  // the others it is the largest.
  template <int kSums, int n>
  RNNFAST_DEVICE void reduce(S (&t)[n]) const {
    RNNFAST_SHARED_ARRAY(float, of_warps, n*(kMostThreads / 32));
    const auto both = [](int i, S a, S b) { return i < kSums ? a + b : maximum(a, b); };
    for (int i = 0; i < n; ++i) {
      for (int other = 16; other > 0; other /= 2) {
        t[i] = both(i, t[i], shuffle_xor(0xFFFFFFFFu, t[i], other));
      }
      if (lane() == 0) of_warps[i * (kMostThreads / 32) + warp()] = t[i];
    }
    sync_block();
    for (int i = 0; i < n; ++i) {
      t[i] = of_warps[i * (kMostThreads / 32)];
      for (int w = 1; w < block_threads() / 32; ++w) {
        t[i] = both(i, t[i], of_warps[i * (kMostThreads / 32) + w]);
      }
    }
    sync_block();  // before another one takes the place
  }
};

// Own: a generated body, with run().
template <class Own, class Step>
RNNFAST_KERNEL(kMostThreads)
own_rows(RNNFAST_ARGS RowsArgs<Step> args) {
  const Sequence q = sequence_of(args.step, block_x());
  if (q.alive) Own(args, q, block_y()).run();
}

}  // namespace rnnfast::cuda::steps
