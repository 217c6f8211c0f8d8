// What rnnfast._C offers for CUDA devices beside the ops of cuda_scan.cpp; compiled only where CUDA
// is on.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>

#include "cuda/poison.h"

namespace py = pybind11;

namespace {

void cuda_poison(const at::Tensor& tensor) {
  const bool no_device = c10::cuda::device_count() == 0;
  TORCH_CHECK_VALUE(tensor.is_cuda(), "cuda_poison: expected a CUDA tensor, got one on ",
                    tensor.device(), no_device ? "; torch sees no CUDA device here" : "");
  TORCH_CHECK_TYPE(tensor.is_floating_point(),
                   "cuda_poison: expected a floating-point tensor, got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.is_non_overlapping_and_dense(),
                    "cuda_poison: expected a dense tensor, got a strided view");
  const c10::cuda::CUDAGuard guard(tensor.device());
  rnnfast::cuda::poison(tensor.mutable_data_ptr(), static_cast<std::int64_t>(tensor.nbytes()),
                        c10::cuda::getCurrentCUDAStream());
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// What cuda_plan (plan.cpp) asks of a device.
std::tuple<int, int, int64_t, int64_t, double> cuda_device(int index) {
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, index);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, index);
  constexpr double kKilohertz = 1e-6;  // in GHz
  return {10 * major + minor, attribute(cudaDevAttrMultiProcessorCount, index),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
          attribute(cudaDevAttrMaxRegistersPerBlock, index),
          attribute(cudaDevAttrClockRate, index) * kKilohertz};
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_device", torch::wrap_pybind_function(cuda_device), py::arg("index"),
        "(compute capability as 10*major+minor, SMs, bytes of shared memory and registers of a "
        "block, GHz) of a CUDA device.\n\nRaises RuntimeError where there is no such device.");
  m.def("cuda_poison", torch::wrap_pybind_function(cuda_poison), py::arg("tensor"),
        "Fill a dense floating-point CUDA tensor with NaN (all bits set) on the current stream, so "
        "that a test sees "
        "what a kernel left unwritten.\n\nRaises ValueError for a tensor that isn't on a CUDA "
        "device or isn't dense, "
        "TypeError for another dtype, RuntimeError where the launch fails.");
}
