// The team of one block: how its warps tell one another that a step's operands are there.
#pragma once

#include "cuda/device/device.h"

namespace rnnfast::cuda {

// One block has all hidden units; its shared memory is the exchange. With two sets of rows one
// barrier a step is enough: whoever writes set k again has passed a barrier after the last read of
// it.
struct SoloTeam {
  static constexpr int kBlocks = 1;

  // The batch tile of this team.
  RNNFAST_DEVICE static int tile() { return block_x(); }

  // Between the two stands what nobody else waits for: stores to global memory, prefetches.
  RNNFAST_DEVICE static void signal() {}
  RNNFAST_DEVICE static void wait() { sync_block(); }
};

}  // namespace rnnfast::cuda
