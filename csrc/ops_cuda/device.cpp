#include "ops_cuda/device.h"

#include <algorithm>

#include "cuda/plan/model.h"
#include "ops_cuda/turn.h"

// torch's guard, whose constructor and destructor are the one thing here that its stable ABI has
// not. They are called by name, and where a torch has them no longer, a scan that needs them raises.
extern "C" __attribute__((weak, visibility("default"))) void _ZN2at11NoTF32GuardC1Ev(void*);
extern "C" __attribute__((weak, visibility("default"))) void _ZN2at11NoTF32GuardD1Ev(void*);

namespace rnnfast::ops {

NoTf32::NoTf32(bool wanted) : wanted_(wanted) {
  if (!wanted) return;
  require(_ZN2at11NoTF32GuardC1Ev && _ZN2at11NoTF32GuardD1Ev,
          "this torch has no at::NoTF32Guard, without which products in plain float32 can't be "
          "promised; allow TF32, or use another backend");
  _ZN2at11NoTF32GuardC1Ev(guard_);
}

NoTf32::~NoTf32() {
  if (wanted_) _ZN2at11NoTF32GuardD1Ev(guard_);
}

Tensor empty_like(const Tensor& like, const Shape& shape, ScalarType dtype) {
  Shape strides(shape.size(), 1);
  for (size_t d = shape.size(); d-- > 1;)
    strides[d - 1] = strides[d] * std::max<int64_t>(shape[d], 1);
  int32_t device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device,
      like.get_device_index(), &made));
  return Tensor(made);
}

Tensor zeros_like(const Tensor& like, const Shape& shape, ScalarType dtype) {
  const Tensor made = empty_like(like, shape, dtype);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(made.get()));
  return made;
}

#if defined(RNNFAST_SIMT)

std::tuple<int64_t, int64_t, int64_t, int64_t, double> device_numbers(int64_t) {
  const cuda::Device h100 = cuda::device_by_name("H100");
  return {h100.sm, h100.sm_count, h100.shared_limit, h100.registers, h100.clock_ghz};
}

#else

const char* device_hint() {
  int count = 0;
  const bool none = cudaGetDeviceCount(&count) != cudaSuccess || count == 0;
  if (none) cudaGetLastError();  // it is told here
  return none ? "; there is no CUDA device here" : "";
}

cuda::Stream current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

namespace {

int64_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace

std::tuple<int64_t, int64_t, int64_t, int64_t, double> device_numbers(int64_t index) {
  const int device = static_cast<int>(index);
  const int64_t major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int64_t minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  constexpr double kKilohertz = 1e-6;  // in GHz
  return {10 * major + minor, attribute(cudaDevAttrMultiProcessorCount, device),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          attribute(cudaDevAttrMaxRegistersPerBlock, device),
          double(attribute(cudaDevAttrClockRate, device)) * kKilohertz};
}

#endif

}  // namespace rnnfast::ops
