// Threads that share a scan, and their part of it.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/range.h"
#include "cpu/threads.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// In nanoseconds: the time, and for how long a processor has worked for this thread.
int64_t now();
int64_t worked();

// A barrier of the threads of one row part. Spins a little, then sleeps: machines are shared, and a
// thread that is waited for may have to wait for a core that only the waiting one can give it.
//
// On a crowded machine threads wait for one another at every step, and one alone is sooner done. So
// where the last to come has worked for little of the time it dissolves the team, and all know it.
class Barrier {
 public:
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
    for (int spins = 0; spins < kSpins; ++spins) {
      if (__atomic_load_n(&phase_, __ATOMIC_ACQUIRE) != phase) return;
      pause();
    }
    __atomic_add_fetch(&sleepers_, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&phase_, __ATOMIC_SEQ_CST) == phase) sleep(phase);
    __atomic_sub_fetch(&sleepers_, 1, __ATOMIC_RELAXED);
  }

  // Whether this thread has worked for less than a quarter of the time; beside one other busy
  // process it does so for half of it.
  bool is_crowded(int64_t before) {
    const int64_t time = now();
    if (time < look_) return false;
    look_ = time + kPatience;
    return 4 * (worked() - before) < time - began_;
  }

  static constexpr int kSpins = 1000;            // some 20 microseconds
  static constexpr int64_t kPatience = 8000000;  // nanoseconds: a few turns of other processes

  static void pause();
  void sleep(int phase);  // until the phase is another, or for less
  void wake();

  alignas(64) int arrived_ = 0;
  alignas(64) int phase_ = 0;
  int sleepers_ = 0;
  int64_t began_ = 0, look_ = 0;  // nanoseconds: when, and when to look next; 0: never
  bool dissolved_ = false;
};

// One thread's place.
struct Place {
  int row = 0, unit = 0;  // which part of either
  mutable Split split;
  Barrier *barrier = nullptr, *everyone = nullptr;
  int64_t worked_before = 0;
  mutable bool gone = false;

  // Whether this thread goes on. Where the team was dissolved one does, for all hidden units: its
  // results are the same bits.
  bool wait() const {
    if (!gone && !barrier->wait(split.units, worked_before)) {
      gone = unit != 0;
      split.units = 1;
    }
    return !gone;
  }
  // For the whole team.
  void wait_for_all() const { everyone->wait(static_cast<int>(threads())); }
  int64_t id() const { return int64_t(row) * split.units + unit; }
  int64_t threads() const { return int64_t(split.rows) * split.units; }
  // This thread's part of what the whole team shares.
  Range share(int64_t size) const { return part(size, 1, id(), threads()); }
};

// body(Place) on split.rows · split.units threads, or on one if there are fewer. Returns whether
// some of them had to leave.
template <class Body>
bool with_team(Split split, const Body& body) {
  constexpr int kMaxRows = 1024, kMaxSharedRows = 64;  // a part of one thread never waits
  const int n = split.rows * split.units;
  Barrier barriers[kMaxSharedRows], everyone;
  const auto alone = [&] { body(Place{0, 0, Split{}, &barriers[0], &everyone}); };
  if (n == 1 || split.rows > kMaxRows || (split.units > 1 && split.rows > kMaxSharedRows)) {
    alone();
    return false;
  }
  const int shared = split.units > 1 ? split.rows : 0;
  for (int row = 0; row < shared; ++row) barriers[row].begin();
  on_threads(n, [&](int id, int threads) {
    const int row = id / split.units;
    if (threads == n) {
      Barrier* const own = &barriers[row % kMaxSharedRows];
      body(Place{row, id % split.units, split, own, &everyone, split.units > 1 ? worked() : 0});
    } else if (id == 0) {
      alone();
    }
  });
  bool dissolved = false;
  for (int row = 0; row < shared; ++row) dissolved |= barriers[row].dissolved();
  return dissolved;
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
