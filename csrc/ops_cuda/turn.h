// One launch after the other of those whose blocks wait for one another.
#pragma once

#include "cuda/device/stream.h"

namespace rnnfast {

#if defined(RNNFAST_SIMT)

struct GridTurn {  // the executor runs one launch at a time
  GridTurn(bool, cuda::Stream) {}
  void launched() {}
};

#else

// The turn of a launch of grid teams on the current device and `stream`, which is one of its, if
// `grid`: it begins when the one before it, on whatever stream, has ended. Two such launches at once
// might each have some of their blocks on the device and wait for the rest for ever. Within the
// capture of a CUDA graph only launches of the same capture wait for each other: see docs/cuda.md.
class GridTurn {
 public:
  GridTurn(bool grid, cuda::Stream stream);
  void launched();  // what the next one waits for
  ~GridTurn();
  GridTurn(const GridTurn&) = delete;
  GridTurn& operator=(const GridTurn&) = delete;

 private:
  const bool grid_;
  const cuda::Stream stream_;
};

// Throws std::runtime_error for what is no success.
void check(cudaError_t error);

#endif

}  // namespace rnnfast
