// Checking kernel launches. No torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace rnnfast::cuda {

// Call right after `kernel<<<grid, block, ..., stream>>>(...)`. Throws std::runtime_error with the
// kernel's name and launch shape where the launch failed; a fault inside the kernel shows at the
// next synchronisation only.
inline void check_launch(const char* kernel, dim3 grid, dim3 block) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  const auto shape = [](dim3 d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) +
           ")";
  };
  throw std::runtime_error(
      std::string("launch of ") + kernel + " failed: " + cudaGetErrorString(error) + " [" +
      cudaGetErrorName(error) + "], grid " + shape(grid) + ", block " + shape(block));
}

}  // namespace rnnfast::cuda
