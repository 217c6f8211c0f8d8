#include "ops_cuda/turn.h"

#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace rnnfast {

void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

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
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return all[key] = event;
}

std::mutex mutex;  // held from before a launch until its event is recorded

Key key_of(cudaStream_t stream) {
  int device = 0;
  check(cudaGetDevice(&device));
  unsigned long long capture = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamGetCaptureInfo(stream, &status, &capture));
  return {device, status == cudaStreamCaptureStatusNone ? 0 : capture};
}

}  // namespace

GridTurn::GridTurn(bool grid, cuda::Stream stream) : grid_(grid), stream_(stream) {
  if (!grid) return;
  std::unique_lock lock(mutex);
  const auto last = last_launches().find(key_of(stream));
  if (last != last_launches().end()) check(cudaStreamWaitEvent(stream, last->second, 0));
  lock.release();  // until the destructor
}

void GridTurn::launched() {
  if (grid_) check(cudaEventRecord(event_of(key_of(stream_)), stream_));
}

GridTurn::~GridTurn() {
  if (grid_) mutex.unlock();
}

}  // namespace rnnfast
