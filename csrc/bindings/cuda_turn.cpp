// One launch of grid teams after the other, on each device.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <iterator>
#include <map>
#include <mutex>
#include <utility>

#include "cuda_device.h"

namespace rnnfast {
namespace {

// By device and capture (0: none) the event of the last launch; one recorded within a capture means
// nothing outside it. Never destroyed: at exit the driver may be gone already.
using Key = std::pair<int, unsigned long long>;
std::map<Key, cudaEvent_t>& last_launches() {
  static std::map<Key, cudaEvent_t>& all = *new std::map<Key, cudaEvent_t>;
  return all;
}

constexpr int kMostCaptures = 16;  // of a device, whose events are kept

// The event of a key, made where there is none; of too many captures the oldest gives up its own.
cudaEvent_t event_of(const Key& key) {
  auto& all = last_launches();
  if (const auto known = all.find(key); known != all.end()) return known->second;
  const auto first = all.lower_bound({key.first, 1}), end = all.lower_bound({key.first + 1, 0});
  if (key.second != 0 && std::distance(first, end) >= kMostCaptures) {
    auto oldest = all.extract(first);
    oldest.key() = key;
    return all.insert(std::move(oldest)).position->second;
  }
  cudaEvent_t event = nullptr;
  C10_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return all[key] = event;
}

std::mutex mutex;  // held from before a launch until its event is recorded

Key key_here() {
  unsigned long long capture = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(current_stream(), &status, &capture));
  return {c10::cuda::current_device(), status == cudaStreamCaptureStatusNone ? 0 : capture};
}

}  // namespace

GridTurn::GridTurn(bool grid) : grid_(grid) {
  if (!grid) return;
  std::unique_lock lock(mutex);
  const auto last = last_launches().find(key_here());
  if (last != last_launches().end()) {
    C10_CUDA_CHECK(cudaStreamWaitEvent(current_stream(), last->second, 0));
  }
  lock.release();  // until the destructor
}

void GridTurn::launched() {
  if (!grid_) return;
  C10_CUDA_CHECK(cudaEventRecord(event_of(key_here()), current_stream()));
}

GridTurn::~GridTurn() {
  if (grid_) mutex.unlock();
}

}  // namespace rnnfast
