// What the host gives a scan: threads, vectors, caches.
#pragma once

#include <omp.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/kernels.h"
#include "scan/plan.h"

namespace rnnfast::cpu {

// OpenMP's threads do not survive a fork: the child of one runs alone.
inline std::atomic<bool> forked{false};

inline void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

// Of `asked`, torch's number, no more than there are processors for: threads that share one would
// wait for each other at every step. OpenMP is asked, since it may have bound this thread to one of
// them.
inline int threads_of(int asked) {
  return forked ? 1 : std::max(1, std::min(asked, omp_get_num_procs()));
}

inline int64_t l2_bytes() {
  const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return size > 0 ? size : int64_t(1) << 20;
}

inline Host host_with(int threads) {
  static const int64_t l2 = l2_bytes();
  return {threads, kernels().vector_bytes, l2};
}

}  // namespace rnnfast::cpu
