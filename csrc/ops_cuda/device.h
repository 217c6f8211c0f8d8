// The little that the ops of the CUDA kernels say of a device. With RNNFAST_SIMT they are compiled
// for CPU tensors, on which tests/simt executes the kernels.
#pragma once

#include <tuple>

#include "cuda/device/stream.h"
#include "ops/tensors.h"

#if defined(RNNFAST_SIMT)

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#define RNNFAST_LIBRARY "rnnfast_simt"
#define RNNFAST_KEY "CPU"

namespace rnnfast::ops {

inline constexpr const char* kDevice = "cpu";
inline bool is_ours(const Tensor& tensor) { return tensor.is_cpu(); }
inline const char* device_hint() { return ""; }

struct OnDevice {
  explicit OnDevice(int) {}
};

inline cuda::Stream current_stream(const Tensor&) { return cuda::Stream{}; }

inline constexpr auto mm_out = aoti_torch_cpu_mm_out;
inline constexpr auto addmm_out = aoti_torch_cpu_addmm_out;

}  // namespace rnnfast::ops

#else

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>

#define RNNFAST_LIBRARY "rnnfast"
#define RNNFAST_KEY "CUDA"

namespace rnnfast::ops {

inline constexpr const char* kDevice = "cuda";
inline bool is_ours(const Tensor& tensor) { return tensor.is_cuda(); }
const char* device_hint();  // what else an error on another tensor's device should say

using OnDevice = torch::stable::accelerator::DeviceGuard;

// Of the tensor's device.
cuda::Stream current_stream(const Tensor& tensor);

inline constexpr auto mm_out = aoti_torch_cuda_mm_out;
inline constexpr auto addmm_out = aoti_torch_cuda_addmm_out;

}  // namespace rnnfast::ops

#endif

namespace rnnfast::ops {

// (compute capability as 10*major+minor, SMs, bytes of shared memory and registers of a block, GHz)
// of a CUDA device, which is what cuda_plan asks. Throws where there is no such device.
std::tuple<int64_t, int64_t, int64_t, int64_t, double> device_numbers(int64_t index);

// Like `like` but for the shape, and not initialised.
Tensor empty_like(const Tensor& like, const Shape& shape, ScalarType dtype);
Tensor zeros_like(const Tensor& like, const Shape& shape, ScalarType dtype);

// Within a scope torch's products of float32 are no products of TF32, in this thread.
class NoTf32 {
 public:
  explicit NoTf32(bool wanted);
  ~NoTf32();
  NoTf32(const NoTf32&) = delete;
  NoTf32& operator=(const NoTf32&) = delete;

 private:
  const bool wanted_;
  alignas(16) char guard_[64];  // torch's own, of whatever size
};

}  // namespace rnnfast::ops
