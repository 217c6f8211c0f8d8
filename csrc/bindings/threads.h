// How many threads the host kernels may use.
#pragma once

#include <ATen/Parallel.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>

namespace rnnfast {

// OpenMP's threads do not survive a fork: the child of one runs alone.
inline std::atomic<bool> forked{false};

inline void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

// Torch's number, but no more than there are processors for: threads that share one would wait for
// each other at every step.
inline int host_threads() {
  if (forked) return 1;
  const int threads = at::get_num_threads();
#if defined(__linux__)
  cpu_set_t processors;
  if (threads > 1 && sched_getaffinity(0, sizeof processors, &processors) == 0) {
    return std::min(threads, CPU_COUNT(&processors));
  }
#endif
  return threads;
}

}  // namespace rnnfast
