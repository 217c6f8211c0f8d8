// The little that the CUDA bindings say of a device. With RNNFAST_SIMT they are compiled for CPU
// tensors, on which tests/simt executes the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/stream.h"

#if defined(RNNFAST_SIMT)

#define RNNFAST_LIBRARY rnnfast_simt
#define RNNFAST_DISPATCH_KEY CPU

namespace rnnfast {

inline constexpr at::DeviceType kDevice = at::kCPU;

struct OnDevice {
  explicit OnDevice(at::Device) {}
};

inline cuda::Stream current_stream() { return cuda::Stream{}; }

inline const char* device_hint() { return ""; }

}  // namespace rnnfast

#else

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#define RNNFAST_LIBRARY rnnfast
#define RNNFAST_DISPATCH_KEY CUDA

namespace rnnfast {

inline constexpr at::DeviceType kDevice = at::kCUDA;

using OnDevice = c10::cuda::CUDAGuard;

inline cuda::Stream current_stream() { return c10::cuda::getCurrentCUDAStream(); }

inline const char* device_hint() {
  return c10::cuda::device_count() == 0 ? "; torch sees no CUDA device here" : "";
}

}  // namespace rnnfast

#endif
