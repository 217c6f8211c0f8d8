// What device.h's two halves share: scopes, the shape of a launch, 16-bit storage.
#pragma once

#include <cstdint>

namespace rnnfast::cuda {

// Who a fence or an atomic is ordered with.
enum class Scope { kBlock, kCluster, kDevice };

// Storage only; arithmetic is in float.
struct alignas(2) Bf16 {
  uint16_t bits;
};
struct alignas(2) F16 {
  uint16_t bits;
};

struct Launch {
  const char* name = "";
  int64_t grid_x = 1;
  int64_t grid_y = 1;
  int threads = 1;
  int shared_bytes = 0;      // dynamic
  bool cooperative = false;  // all blocks at once, or none
  int cluster_blocks = 1;    // consecutive blocks along x; grid_x is a multiple of it
};

}  // namespace rnnfast::cuda
