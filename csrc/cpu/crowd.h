// Whether others leave this process so little of the processors that threads wait for one another.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace rnnfast {

// An account of the time that was lost where threads worked together, over all calls: scans may be
// over before a process that has one's processor gives it back. Times are in nanoseconds. Threads
// may write at once and lose what another wrote; results do not depend on it.
class Crowd {
 public:
  // Threads worked together for `wall`, each for its part, in `work` all together.
  //
  // As long as they worked for more than half of the time in sum they are worth it. What lacks
  // is lost; of one region only so much counts, so that one hiccup is no crowd. What goes well in a
  // crowd is done in the way of one, and says nothing.
  void note(int64_t wall, int64_t work, int64_t time = now()) {
    constexpr int64_t kMost = kPatience / 2;
    const int64_t lost = lost_.load(kRelaxed) + std::min(wall - 2 * work, kMost);
    if (lost >= kPatience) return seen(time);
    if (known(time)) return;
    if (lost <= 0 && since_.load(kRelaxed) != 0) since_.store(0, kRelaxed);
    lost_.store(std::max<int64_t>(lost, 0), kRelaxed);
  }

  // There is a crowd. One that was seen before, and not gone meanwhile, is expected to stay for as
  // long again: each look costs some turns of the others.
  void seen(int64_t time = now()) {
    if (since_.load(kRelaxed) == 0) since_.store(time, kRelaxed);
    const int64_t lasted = time - since_.load(kRelaxed);
    until_.store(time + std::clamp(lasted, kLeast, kMost), kRelaxed);
    lost_.store(kPatience, kRelaxed);
  }

  bool known(int64_t time = now()) const { return time < until_.load(kRelaxed); }

  // Whether time was lost that has not been made up for.
  bool suspected() const { return lost_.load(kRelaxed) > 0; }

  // How many threads of n for what takes one of them `work`. In a crowd one alone, unless that is so
  // long that others have their turns meanwhile anyway.
  int threads(int n, double work) const { return n > 1 && work < kTurn && known() ? 1 : n; }

 private:
  static constexpr auto kRelaxed = std::memory_order_relaxed;
  static constexpr int64_t kPatience = 8000000;
  static constexpr int64_t kLeast = 100000000, kMost = 5000000000;
  static constexpr double kTurn = 4e6;

  static int64_t now() {
    using std::chrono::nanoseconds;
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<nanoseconds>(time).count();
  }

  std::atomic<int64_t> lost_{0}, since_{0}, until_{0};
};

inline Crowd& crowd() {
  static Crowd crowd;
  return crowd;
}

}  // namespace rnnfast
