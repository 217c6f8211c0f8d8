// The one place where threads start: OpenMP's, the runtime that torch has in the process, or in a
// crowd threads that end with their work. RNNFAST_STD_THREADS, always the latter, is for
// ThreadSanitizer, which cannot follow the threads of a libgomp that was not built for it. Code that
// is compiled at run time (RNNFAST_TEAM) is given the function.
#pragma once

#if defined(RNNFAST_TEAM)
#include "scan/steps.h"
#endif

namespace rnnfast::cpu {

#if defined(RNNFAST_TEAM)
extern rnnfast::steps::Team team;
#else
// body(context, thread, how many there are) on n threads, or on fewer if no more are to be had.
void run_threads(int n, void (*body)(void*, int, int), void* context);
#endif

// The same of body(thread, how many there are).
template <class Body>
void on_threads(int n, const Body& body) {
  const auto call = [](void* context, int id, int threads) {
    (*static_cast<const Body*>(context))(id, threads);
  };
  void* const context = const_cast<Body*>(&body);
#if defined(RNNFAST_TEAM)
  team(n, call, context);
#else
  run_threads(n, call, context);
#endif
}

}  // namespace rnnfast::cpu
