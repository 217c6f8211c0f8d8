// Threads that share a scan, and their part of it.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// A barrier of the threads of one row part. Spins a little, then lets others run, since machines
// are shared.
class Barrier {
 public:
  void wait(int n) {
    if (n == 1) return;
    const int phase = __atomic_load_n(&phase_, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == n) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&phase_, phase + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(&phase_, __ATOMIC_ACQUIRE) == phase; ++spins) pause(spins);
  }

 private:
  static void pause(int spins);

  alignas(64) int arrived_ = 0;
  alignas(64) int phase_ = 0;
};

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// Part i of n of [0, size), in multiples of `grain`.
inline Range part(int64_t size, int64_t grain, int64_t i, int64_t n) {
  const int64_t grains = (size + grain - 1) / grain;
  const int64_t begin = grains * i / n * grain, end = grains * (i + 1) / n * grain;
  return {begin < size ? begin : size, end < size ? end : size};
}

// One thread's place.
struct Place {
  int row = 0, unit = 0;  // which part of either
  Split split;
  Barrier* barrier = nullptr;

  void wait() const { barrier->wait(split.units); }
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
  Barrier barriers[kMaxSharedRows];
  const auto alone = [&] { body(Place{0, 0, Split{}, &barriers[0]}); };
  if (n == 1 || split.rows > kMaxRows || (split.units > 1 && split.rows > kMaxSharedRows)) {
    return alone();
  }
  on_threads(n, [&](int id, int threads) {
    const int row = id / split.units;
    if (threads == n) {
      body(Place{row, id % split.units, split, &barriers[row % kMaxSharedRows]});
    } else if (id == 0) {
      alone();
    }
  });
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
