// Launching kernels, without their types: device_gpu.h has them. No torch headers.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "cuda/device/storage.h"

namespace rnnfast::cuda {

// The largest cluster that a kernel may have without opting in.
inline constexpr int kPortableCluster = 8;

// Throws std::runtime_error with the kernel's name and the launch's shape where `error` is one. A
// fault inside the kernel shows at the next synchronisation only.
inline void check_call(cudaError_t error, const Launch& how) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it isn't found again at another launch
  throw std::runtime_error(
      std::string("launch of ") + how.name + " failed: " + cudaGetErrorString(error) + " [" +
      cudaGetErrorName(error) + "], grid (" + std::to_string(how.grid_x) + ", " +
      std::to_string(how.grid_y) + "), block " + std::to_string(how.threads) + ", shared memory " +
      std::to_string(how.shared_bytes) + " bytes" +
      (how.cluster_blocks > 1 ? ", clusters of " + std::to_string(how.cluster_blocks) : "") +
      (how.cooperative ? ", cooperative" : ""));
}

// What a launch asks of the driver, in the driver's words. Not to be copied: it points into itself.
struct LaunchConfig {
  explicit LaunchConfig(const Launch& how, cudaStream_t stream = nullptr) {
    config.gridDim = dim3(unsigned(how.grid_x), unsigned(how.grid_y));
    config.blockDim = dim3(unsigned(how.threads));
    config.dynamicSmemBytes = size_t(how.shared_bytes);
    config.stream = stream;
    config.attrs = attributes;
    if (how.cooperative) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    if (how.cluster_blocks > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = unsigned(how.cluster_blocks);
      attribute.val.clusterDim.y = 1;
      attribute.val.clusterDim.z = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;

  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};
};

inline int device_attribute(cudaDeviceAttr attribute, const Launch& how) {
  int device = 0, value = 0;
  check_call(cudaGetDevice(&device), how);
  check_call(cudaDeviceGetAttribute(&value, attribute, device), how);
  return value;
}

// What a kernel gets only where it asks for it. It asks for all that the device has, whatever this
// launch needs: another thread may be between asking and launching with more.
inline void opt_in(const Launch& how, const void* kernel) {
  if (how.shared_bytes > 48 * 1024) {
    cudaFuncAttributes own;
    check_call(cudaFuncGetAttributes(&own, kernel), how);
    const int all = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, how);
    check_call(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    all - int(own.sharedSizeBytes)),
               how);
  }
  if (how.cluster_blocks > kPortableCluster) {
    check_call(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
               how);
  }
}

inline void launch_kernel(const Launch& how, const void* kernel, void** parameters,
                          cudaStream_t stream) {
  opt_in(how, kernel);
  const LaunchConfig asked(how, stream);
  check_call(cudaLaunchKernelExC(&asked.config, kernel, parameters), how);
}

// Blocks of clusters that the current device runs at once; 0 where it has no such clusters.
inline int resident_cluster_blocks(Launch how, const void* kernel) {
  if (device_attribute(cudaDevAttrClusterLaunch, how) == 0) return 0;
  opt_in(how, kernel);
  how.grid_x = how.cluster_blocks;  // any grid of whole clusters
  how.grid_y = 1;
  how.cooperative = false;
  const LaunchConfig asked(how);
  int clusters = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &asked.config);
  if (error == cudaErrorInvalidClusterSize) {
    cudaGetLastError();
    return 0;
  }
  check_call(error, how);
  return clusters * how.cluster_blocks;
}

inline int resident_kernel_blocks(const Launch& how, const void* kernel) {
  if (how.cluster_blocks > 1) return resident_cluster_blocks(how, kernel);
  opt_in(how, kernel);
  int blocks = 0;  // of a multiprocessor
  check_call(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, how.threads,
                                                           size_t(how.shared_bytes)),
             how);
  return blocks * device_attribute(cudaDevAttrMultiProcessorCount, how);
}

}  // namespace rnnfast::cuda
