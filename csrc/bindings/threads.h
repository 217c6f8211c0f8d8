// How many threads the host kernels may use.
#pragma once

#include <ATen/Parallel.h>
#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

namespace rnnfast {

// OpenMP's threads do not survive a fork: the child of one runs alone.
inline std::atomic<bool> forked{false};

inline void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

// Torch's number, but no more than there are processors for: threads that share one would wait for
// each other at every step. OpenMP is asked, since it may have bound this thread to one of them.
inline int host_threads() {
  return forked ? 1 : std::max(1, std::min(at::get_num_threads(), omp_get_num_procs()));
}

}  // namespace rnnfast
