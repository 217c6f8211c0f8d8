// What is done once for all steps: zeros past a sequence's end, and the states that it ends with.
#pragma once

#include "cuda/device/device.h"
#include "scan/rules.h"
#include "scan/steps.h"

namespace rnnfast::cuda::steps {

using rnnfast::steps::Buffer;
using rnnfast::steps::Kind;

inline constexpr int kEndThreads = 128;

inline constexpr int kMostEnds = 32;

struct EndArgs {
  Rules rules;
  bool backward;
  int count;
  Buffer buffers[kMostEnds];
};

RNNFAST_KERNEL(kEndThreads)
own_clear(RNNFAST_ARGS EndArgs args) {
  const int64_t b = block_x();
  for (int64_t t = args.rules.length(b) + block_y(); t < args.rules.T; t += grid_y()) {
    for (int k = 0; k < args.count; ++k) {
      const Buffer& buffer = args.buffers[k];
      float* row = static_cast<float*>(buffer.base) + (t * args.rules.B + b) * buffer.width;
      for (int64_t j = thread_index(); j < buffer.width; j += kEndThreads) store(row + j, 0.0f);
    }
  }
}

// The number of the loop's step that was sequence b's last.
RNNFAST_DEVICE int64_t last_count(const Rules& rules, bool backward, int64_t b) {
  return backward == rules.reverse ? rules.length(b) - 1 : rules.T - 1;
}

RNNFAST_KERNEL(kEndThreads)
own_keep_last(RNNFAST_ARGS EndArgs args) {
  const int64_t b = block_x(), B = args.rules.B;
  const int64_t slot = last_count(args.rules, args.backward, b) & 1;
  for (int k = 0; k < args.count; ++k) {
    const Buffer& buffer = args.buffers[k];
    const int64_t w = buffer.width;
    const float* from = static_cast<const float*>(buffer.init) + b * w;
    if (args.rules.length(b) > 0) {
      const int64_t at = Kind(buffer.kind) == Kind::kNew ? args.rules.last(b) : slot;
      from = static_cast<const float*>(buffer.base) + (at * B + b) * w;
    }
    float* to = static_cast<float*>(buffer.last) + b * w;
    for (int64_t j = thread_index(); j < w; j += kEndThreads) store(to + j, load(from + j));
  }
}

}  // namespace rnnfast::cuda::steps
