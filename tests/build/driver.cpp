// csrc/cuda/device/launch.h against a driver that stands in for CUDA's: what is asked of it, in
// which order, and what becomes of its refusals. Ends with 1 and a line for each that is wrong.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <mutex>
#include <thread>

#include "cuda/device/launch.h"

namespace {

constexpr int kStatic = 1024;
constexpr int kOptIn[] = {227 * 1024, 163 * 1024};  // of two devices

struct Driver {
  std::mutex mutex;
  std::map<std::pair<int, const void*>, int> dynamic_limit;  // by device and kernel
  bool has_clusters = true, takes_clusters = true;
  int launches = 0;
} driver;
thread_local int current = 0;

std::atomic<int> wrong = 0;
#define EXPECT(condition) \
  if (!(condition)) ++wrong, std::printf("line %d: %s\n", __LINE__, #condition)

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "refused"; }
const char* cudaGetErrorName(cudaError_t) { return "cudaErrorRefused"; }
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? kOptIn[device]
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
  if (value + kStatic > kOptIn[current]) return cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(driver.mutex);
  driver.dynamic_limit[{current, kernel}] = value;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* kernel, void**) {
  std::this_thread::sleep_for(std::chrono::microseconds(20));  // another thread may go first
  const int bytes = static_cast<int>(how->dynamicSmemBytes);
  const std::lock_guard<std::mutex> lock(driver.mutex);
  const int limit = driver.dynamic_limit[{current, kernel}];
  if (bytes > 48 * 1024 && bytes > limit) return cudaErrorInvalidValue;
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

namespace {

// `count` launches of a kernel on a device, of as much shared memory as is told.
std::thread launching(const void* kernel, int device, int kilobytes, int count = 100) {
  return std::thread([=] {
    current = device;
    rnnfast::cuda::Launch how;
    how.name = "one of many", how.shared_bytes = kilobytes * 1024;
    try {
      for (int i = 0; i < count; ++i) {
        rnnfast::cuda::launch_kernel(how, kernel, nullptr, nullptr);
      }
    } catch (const std::runtime_error& error) {
      ++wrong, std::printf("device %d, %d KiB: %s\n", device, kilobytes, error.what());
    }
  });
}

}  // namespace

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
  EXPECT((driver.dynamic_limit[{0, &kernel}]) == kOptIn[0] - kStatic);

  launch_kernel(small, &kernel, nullptr, nullptr);
  EXPECT(driver.launches == 2);
  large.shared_bytes = kOptIn[0];
  try {
    launch_kernel(large, &kernel, nullptr, nullptr);
    EXPECT(!"a launch that the driver refuses throws");
  } catch (const std::runtime_error& error) {
    EXPECT(std::string(error.what()).find("launch of large failed: refused") == 0);
  }

  // Threads with different sizes, on two devices of one process that have different limits.
  std::thread threads[] = {launching(&kernel, 0, 220), launching(&kernel, 0, 60),
                           launching(&kernel, 1, 160), launching(&kernel, 1, 50)};
  for (std::thread& thread : threads) thread.join();
  EXPECT(driver.launches == 402);
  EXPECT((driver.dynamic_limit[{1, &kernel}]) == kOptIn[1] - kStatic);

  EXPECT(resident_kernel_blocks(small, &kernel) == 264);
  EXPECT(resident_kernel_blocks(wide, &kernel) == 240);
  driver.takes_clusters = false;
  EXPECT(resident_kernel_blocks(wide, &kernel) == 0);
  driver.takes_clusters = true, driver.has_clusters = false;
  EXPECT(resident_kernel_blocks(wide, &kernel) == 0);
  return wrong == 0 ? 0 : 1;
}
