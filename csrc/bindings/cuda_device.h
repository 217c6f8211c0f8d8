// The little that the CUDA bindings say of a device. With RNNFAST_SIMT they are compiled for CPU
// tensors, on which tests/simt executes the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/device/stream.h"

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

struct GridTurn {  // the executor runs one launch at a time
  explicit GridTurn(bool) {}
  void launched() {}
};

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

// The turn of a launch of grid teams on the current device and stream, if `grid`: it begins when
// the one before it, on whatever stream, has ended. Two such launches at once might each have some
// of their blocks on the device and wait for the rest for ever. Within the capture of a CUDA graph
// only launches of the same capture wait for each other: see docs/cuda.md.
class GridTurn {
 public:
  explicit GridTurn(bool grid);
  void launched();  // what the next one waits for
  ~GridTurn();
  GridTurn(const GridTurn&) = delete;
  GridTurn& operator=(const GridTurn&) = delete;

 private:
  bool grid_;
};

}  // namespace rnnfast

#endif
