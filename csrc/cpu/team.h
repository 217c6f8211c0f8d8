// Threads that share a scan, and their part of it.
#pragma once

#include <omp.h>

#include <cstdint>

#include "cpu/kernels.h"

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
};

// body(Place) on split.rows · split.units threads, or on one if OpenMP gives fewer.
template <class Body>
void with_team(Split split, const Body& body) {
  const int n = split.rows * split.units;
  constexpr int kMaxRowParts = 1024;
  if (n == 1 || split.rows > kMaxRowParts) {
    Barrier alone;
    body(Place{0, 0, Split{}, &alone});
    return;
  }
  Barrier barriers[64];  // more row parts than that have one unit part each and never wait
  bool enough = true;
#pragma omp parallel num_threads(n)
  {
#pragma omp single
    enough = omp_get_num_threads() == n && (split.units == 1 || split.rows <= 64);
    const int id = omp_get_thread_num();
    if (enough) {
      const int row = id / split.units;
      body(Place{row, id % split.units, split, &barriers[row % 64]});
    } else if (id == 0) {
      body(Place{0, 0, Split{}, &barriers[0]});
    }
  }
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
