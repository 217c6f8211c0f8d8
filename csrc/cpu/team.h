// Threads that share a scan, and their part of it.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/range.h"
#include "cpu/threads.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// A barrier of the threads of one row part. Spins a little, then sleeps: machines are shared, and a
// thread that is waited for may have to wait for a core that only the waiting one can give it.
class Barrier {
 public:
  void wait(int n) {
    if (n == 1) return;
    const int phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == n) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
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

 private:
  static constexpr int kSpins = 1000;  // some 20 microseconds

  static void pause();
  void sleep(int phase);  // until the phase is another, or for less
  void wake();

  alignas(64) int arrived_ = 0;
  alignas(64) int phase_ = 0;
  int sleepers_ = 0;
};

// One thread's place.
struct Place {
  int row = 0, unit = 0;  // which part of either
  Split split;
  Barrier *barrier = nullptr, *everyone = nullptr;

  void wait() const { barrier->wait(split.units); }
  // For the whole team.
  void wait_for_all() const { everyone->wait(static_cast<int>(threads())); }
  int64_t id() const { return int64_t(row) * split.units + unit; }
  int64_t threads() const { return int64_t(split.rows) * split.units; }
  // This thread's part of what the whole team shares.
  Range share(int64_t size) const { return part(size, 1, id(), threads()); }
};

// body(Place) on split.rows · split.units threads, or on one if there are fewer.
template <class Body>
void with_team(Split split, const Body& body) {
  constexpr int kMaxRows = 1024, kMaxSharedRows = 64;  // a part of one thread never waits
  const int n = split.rows * split.units;
  Barrier barriers[kMaxSharedRows], everyone;
  const auto alone = [&] { body(Place{0, 0, Split{}, &barriers[0], &everyone}); };
  if (n == 1 || split.rows > kMaxRows || (split.units > 1 && split.rows > kMaxSharedRows)) {
    return alone();
  }
  on_threads(n, [&](int id, int threads) {
    const int row = id / split.units;
    if (threads == n) {
      body(Place{row, id % split.units, split, &barriers[row % kMaxSharedRows], &everyone});
    } else if (id == 0) {
      alone();
    }
  });
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
