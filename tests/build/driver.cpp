// csrc/cuda/device/launch.h against a driver that stands in for CUDA's: what is asked of it, in
// which order, and what becomes of its refusals. Ends with 1 and a line for each that is wrong.
#include <cstdio>
#include <map>

#include "cuda/device/launch.h"

namespace {

constexpr int kOptIn = 227 * 1024, kStatic = 1024;

struct Driver {
  std::map<const void*, int> dynamic_limit;
  bool has_clusters = true, takes_clusters = true;
  int launches = 0;
} driver;

int wrong = 0;
#define EXPECT(condition) \
  if (!(condition)) ++wrong, std::printf("line %d: %s\n", __LINE__, #condition)

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "refused"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorRefused"; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? kOptIn
           : attribute == cudaDevAttrMultiProcessorCount        ? 132
           : attribute == cudaDevAttrClusterLaunch              ? driver.has_clusters
                                                                : 0;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->sharedSizeBytes = kStatic;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value + kStatic > kOptIn) return cudaErrorInvalidValue;
  driver.dynamic_limit[kernel] = value;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* kernel, void**) {
  const int bytes = static_cast<int>(how->dynamicSmemBytes);
  if (bytes > 48 * 1024 && bytes > driver.dynamic_limit[kernel]) return cudaErrorInvalidValue;
  ++driver.launches;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = 15;
  return driver.takes_clusters ? cudaSuccess : cudaErrorInvalidClusterSize;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

}  // extern "C"

int main() {
  using namespace rnnfast::cuda;
  const int kernel = 0;
  Launch large, small, wide;
  large.name = "large", large.shared_bytes = 200 * 1024;
  small.name = "small", small.shared_bytes = 60 * 1024;
  wide.name = "wide", wide.cluster_blocks = 16;

  // Another thread asks for less between this one's asking and its launch.
  opt_in(large, &kernel);
  opt_in(small, &kernel);
  const LaunchConfig asked(large);
  EXPECT(cudaLaunchKernelExC(&asked.config, &kernel, nullptr) == cudaSuccess);
  EXPECT(driver.dynamic_limit[&kernel] == kOptIn - kStatic);

  launch_kernel(small, &kernel, nullptr, nullptr);
  EXPECT(driver.launches == 2);
  large.shared_bytes = kOptIn;
  try {
    launch_kernel(large, &kernel, nullptr, nullptr);
    EXPECT(!"a launch that the driver refuses throws");
  } catch (const std::runtime_error& error) {
    EXPECT(std::string(error.what()).find("launch of large failed: refused") == 0);
  }

  EXPECT(resident_kernel_blocks(small, &kernel) == 264);
  EXPECT(resident_kernel_blocks(wide, &kernel) == 240);
  driver.takes_clusters = false;
  EXPECT(resident_kernel_blocks(wide, &kernel) == 0);
  driver.takes_clusters = true, driver.has_clusters = false;
  EXPECT(resident_kernel_blocks(wide, &kernel) == 0);
  return wrong == 0 ? 0 : 1;
}
