// One launch of grid teams after the other, on each device.
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAFunctions.h>

#include <ATen/cuda/CUDAGraphsUtils.cuh>
#include <map>
#include <mutex>

#include "cuda_device.h"

namespace rnnfast {
namespace {

// The last launch of a device; of a capture, an event of its own, as an event recorded within one
// means nothing outside it.
struct Last {
  at::cuda::CUDAEvent event;
  bool recorded = false;
};

std::mutex mutex;  // held from before a launch until its event is recorded

Last& last_launch() {
  static std::map<std::pair<int, unsigned long long>, Last>& all =
      *new std::map<std::pair<int, unsigned long long>, Last>;  // outlives the CUDA driver's exit
  unsigned long long capture = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(current_stream(), &status, &capture));
  return all[{c10::cuda::current_device(), status == cudaStreamCaptureStatusNone ? 0 : capture}];
}

}  // namespace

GridTurn::GridTurn(bool grid) : grid_(grid) {
  if (!grid) return;
  mutex.lock();
  try {
    Last& last = last_launch();
    if (last.recorded) last.event.block(c10::cuda::getCurrentCUDAStream());
  } catch (...) {
    mutex.unlock();
    throw;
  }
}

void GridTurn::launched() {
  if (!grid_) return;
  Last& last = last_launch();
  last.event.record(c10::cuda::getCurrentCUDAStream());
  last.recorded = true;
}

GridTurn::~GridTurn() {
  if (grid_) mutex.unlock();
}

}  // namespace rnnfast
