// Where threads work together, from when one opens it until all have done their part.
#pragma once

#include <cstdint>

#include "cpu/barrier.h"
#include "cpu/crowd.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// It tells the crowd's account how long that took, and how long they worked.
//
// It ends with a barrier of ours: that of OpenMP spins for some milliseconds, and the late thread may
// have to wait for just that processor. In a region it costs nothing to spin for longer than at a
// step, as long as nothing was lost yet.
class Region {
 public:
  explicit Region(Crowd& crowd)
      : crowd_(crowd),
        began_(now()),
        end_(Barrier::kSpins * (crowd.suspected() ? 1 : kLongSpins)) {}

  bool is_crowded() const { return crowd_.known(began_); }

  // body(id, threads) for each of them.
  template <class Body>
  void work(int id, int threads, const Body& body) {
    const int64_t before = worked_by(began_);
    body(id, threads);
    const int64_t spent = now() - began_;
    // a clock of a thread takes longer to read than short work
    const int64_t work = spent < kShort ? spent : worked() - before;
    __atomic_fetch_add(&work_, work < spent ? work : spent, __ATOMIC_RELAXED);
    if (spent >= kShort) ends_on(processor());
    end_.wait(threads);
    if (id != 0 || threads == 1) return;
    // two threads on one processor did no more than one would have
    const bool shared = __atomic_load_n(&shared_, __ATOMIC_RELAXED);
    crowd_.note(now() - began_, shared ? 0 : __atomic_load_n(&work_, __ATOMIC_RELAXED));
  }

 private:
  static constexpr int kLongSpins = 40;
  static constexpr int64_t kShort = 1000000, kFresh = 100000;  // nanoseconds

  // What this thread had worked at that time, or a little before.
  static int64_t worked_by(int64_t time) {
    struct Sample {
      int64_t time = -kFresh, worked = 0;
    };
    static thread_local Sample last;
    if (time - last.time >= kFresh) last = {time, cpu::RNNFAST_ISA::worked()};
    return last.worked;
  }

  void ends_on(int place) {
    if (place < 0 || place >= kProcessors) return;
    const uint64_t bit = uint64_t(1) << (place % 64);
    const uint64_t others = __atomic_fetch_or(&ended_[place / 64], bit, __ATOMIC_RELAXED);
    if (others & bit) __atomic_store_n(&shared_, true, __ATOMIC_RELAXED);
  }

  static constexpr int kProcessors = 1024;

  Crowd& crowd_;
  const int64_t began_;
  int64_t work_ = 0;
  uint64_t ended_[kProcessors / 64] = {};
  bool shared_ = false;
  Barrier end_;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
