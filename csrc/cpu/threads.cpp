#include "cpu/threads.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(RNNFAST_STD_THREADS)
#include <omp.h>
#endif

#define RNNFAST_ISA together
#include "cpu/region.h"
// after it
#include "cpu/pause.inc"

namespace rnnfast::cpu {

namespace {

// work(id, threads) on threads that begin and end with it, or on fewer where the system has no more.
template <class Work>
void on_own_threads(int n, const Work& work) {
  std::mutex mutex;
  std::condition_variable known;
  int found = 0;
  const auto begin = [&](int id) {
    {
      std::unique_lock<std::mutex> lock(mutex);
      known.wait(lock, [&] { return found > 0; });
    }
    work(id, found);
  };
  std::vector<std::thread> others;
  try {
    others.reserve(static_cast<size_t>(n));
    for (int id = 1; id < n; ++id) others.emplace_back(begin, id);
  } catch (const std::exception&) {
  }
  {
    const std::lock_guard<std::mutex> lock(mutex);
    found = static_cast<int>(others.size()) + 1;
  }
  known.notify_all();
  work(0, found);
  for (std::thread& other : others) other.join();
}

}  // namespace

void run_threads(int n, void (*body)(void*, int, int), void* context) {
  if (n <= 1) return body(context, 0, 1);
  together::Region region(crowd());
  const auto work = [&](int id, int threads) {
    region.work(id, threads, [&](int id, int threads) { body(context, id, threads); });
  };
#if !defined(RNNFAST_STD_THREADS)
  // OpenMP's threads spin for some milliseconds after each region, which in a crowd are turns that
  // the next one waits for.
  const bool own = region.is_crowded() && !omp_in_parallel() && !omp_get_proc_bind();
  if (!own) {
#pragma omp parallel num_threads(n)
    work(omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  on_own_threads(n, work);
}

}  // namespace rnnfast::cpu
