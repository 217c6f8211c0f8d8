// Checking kernel launches. No torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "cuda/storage.h"

namespace rnnfast::cuda {

// Throws std::runtime_error with the kernel's name and the launch's shape where `error` is one. A
// fault inside the kernel shows at the next synchronisation only.
inline void check_call(cudaError_t error, const Launch& how) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it isn't found again at another launch
  throw std::runtime_error(
      std::string("launch of ") + how.name + " failed: " + cudaGetErrorString(error) + " [" +
      cudaGetErrorName(error) + "], grid (" + std::to_string(how.grid_x) + ", " +
      std::to_string(how.grid_y) + "), block " + std::to_string(how.threads) + ", shared memory " +
      std::to_string(how.shared_bytes) + " bytes" + (how.cooperative ? ", cooperative" : ""));
}

}  // namespace rnnfast::cuda
