// The one place where threads start: OpenMP's, the runtime that torch has in the process.
// RNNFAST_STD_THREADS is for ThreadSanitizer, which cannot follow the threads of a libgomp that was
// not built for it. Code that is compiled at run time (RNNFAST_TEAM) is given a function of ours.
#pragma once

#if defined(RNNFAST_TEAM)
#include "scan/steps.h"
#elif defined(RNNFAST_STD_THREADS)
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace rnnfast::cpu {

#if defined(RNNFAST_TEAM)
extern rnnfast::steps::Team team;
#endif

// body(thread, how many there are) on n threads, or on fewer if no more are to be had.
template <class Body>
void on_threads(int n, const Body& body) {
#if defined(RNNFAST_TEAM)
  const auto call = [](void* context, int id, int threads) {
    (*static_cast<const Body*>(context))(id, threads);
  };
  team(n, call, const_cast<Body*>(&body));
#elif defined(RNNFAST_STD_THREADS)
  std::vector<std::thread> others;
  for (int id = 1; id < n; ++id) others.emplace_back([&body, id, n] { body(id, n); });
  body(0, n);
  for (std::thread& other : others) other.join();
#else
#pragma omp parallel num_threads(n)
  body(omp_get_thread_num(), omp_get_num_threads());
#endif
}

}  // namespace rnnfast::cpu
