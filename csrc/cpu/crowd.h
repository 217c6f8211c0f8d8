// Whether others leave this process so little of the processors that threads wait for one another.
#pragma once

#include <atomic>
#include <chrono>

namespace rnnfast {

// What a scan found holds for the ones right after it: each finds out anew in some milliseconds.
// Results do not depend on it.
class Crowd {
 public:
  void seen() { until_.store(now() + kHoldsNs, std::memory_order_relaxed); }
  bool known() const { return now() < until_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kHoldsNs = 100000000;

  static int64_t now() {
    using std::chrono::nanoseconds;
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<nanoseconds>(time).count();
  }

  std::atomic<int64_t> until_{0};
};

inline Crowd& crowd() {
  static Crowd crowd;
  return crowd;
}

}  // namespace rnnfast
