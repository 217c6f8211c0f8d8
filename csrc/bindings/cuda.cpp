// What rnnfast._C offers for CUDA devices beside the ops of cuda_scan.cpp; compiled only where CUDA
// is on.
#include <c10/cuda/CUDAException.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>

namespace py = pybind11;

namespace {

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
}
