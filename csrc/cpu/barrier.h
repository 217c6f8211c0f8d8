// Where threads meet, and their clocks.
#pragma once

#include <cstdint>

namespace rnnfast::cpu::RNNFAST_ISA {

// In nanoseconds: the time, and for how long a processor has worked for this thread.
int64_t now();
int64_t worked();
// That this thread is on; negative where nobody knows.
int processor();

// A barrier of some threads. Spins a little, then sleeps: machines are shared, and a thread that is
// waited for may have to wait for a core that only the waiting one can give it.
//
// On a crowded machine threads wait for one another at every step, and one alone is sooner done. So
// where the last to come has worked for little of the time it dissolves the team, and all know it.
class Barrier {
 public:
  static constexpr int kSpins = 1000;  // some 20 microseconds

  explicit Barrier(int spins = kSpins) : spins_(spins), most_(spins) {}

  void begin() {
    began_ = now();
    look_ = began_ + kPatience;
  }
  bool dissolved() const { return dissolved_; }

  // Whether the team goes on as it is. `before`: what this thread had worked before the scan.
  bool wait(int n, int64_t before = 0) {
    if (n == 1) return true;
    meet(n, before);
    return !dissolved_;
  }

 private:
  void meet(int n, int64_t before) {
    const int phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == n) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      if (look_ > 0 && phase % 16 == 0) dissolved_ = is_crowded(before);
      // either the last to come sees who sleeps, or that one sees the new phase
      __atomic_store_n(&phase_, phase + 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&sleepers_, __ATOMIC_SEQ_CST) > 0) wake();
      return;
    }
    for (int spins = __atomic_load_n(&spins_, __ATOMIC_RELAXED); spins > 0; --spins) {
      if (__atomic_load_n(&phase_, __ATOMIC_ACQUIRE) != phase) return;
      pause();
    }
    __atomic_store_n(&processor_, processor(), __ATOMIC_RELAXED);
    __atomic_add_fetch(&sleepers_, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&phase_, __ATOMIC_SEQ_CST) == phase) sleep(phase);
    __atomic_sub_fetch(&sleepers_, 1, __ATOMIC_RELAXED);
  }

  // Of the last to come, for those that sleep. One that was on its processor has spun in its way:
  // the next to wait sleeps soon.
  void wake() {
    const int mine = processor();
    const bool shared = mine >= 0 && mine == __atomic_load_n(&processor_, __ATOMIC_RELAXED);
    __atomic_store_n(&spins_, shared ? kFewSpins : most_, __ATOMIC_RELAXED);
    wake_all();
  }

  // Whether this thread has worked for less than a quarter of the time; beside one other busy
  // process it does so for half of it.
  bool is_crowded(int64_t before) {
    const int64_t time = now();
    if (time < look_) return false;
    look_ = time + kPatience;
    return 4 * (worked() - before) < time - began_;
  }

  static constexpr int kFewSpins = 16;
  static constexpr int64_t kPatience = 8000000;  // nanoseconds: a few turns of other processes

  static void pause();
  void sleep(int phase);  // until the phase is another, or for less
  void wake_all();

  alignas(64) int arrived_ = 0;
  alignas(64) int phase_ = 0;
  int sleepers_ = 0, processor_ = -1;
  int spins_, most_;
  int64_t began_ = 0, look_ = 0;  // nanoseconds: when, and when to look next; 0: never
  bool dissolved_ = false;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
