// The little of torch that csrc/bindings/cuda_device.h and cuda_turn.cpp name, over a CUDA that may
// itself be a stand-in: the current device's current stream is what a test sets.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace at {
enum DeviceType { kCPU, kCUDA };
}  // namespace at

namespace c10::cuda {

struct CUDAGuard {};

inline int current_device() {
  int device = -1;
  cudaGetDevice(&device);
  return device;
}

int device_count();
cudaStream_t getCurrentCUDAStream();

}  // namespace c10::cuda

#define C10_CUDA_CHECK(call)                                                       \
  do {                                                                             \
    const cudaError_t error = call;                                                \
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error)); \
  } while (false)
