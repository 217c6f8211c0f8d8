// How many threads the host kernels may use.
#pragma once

#include <ATen/Parallel.h>
#include <pthread.h>

#include <atomic>

namespace rnnfast {

// OpenMP's threads do not survive a fork: the child of one runs alone.
inline std::atomic<bool> forked{false};

inline void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

inline int host_threads() { return forked ? 1 : at::get_num_threads(); }

}  // namespace rnnfast
