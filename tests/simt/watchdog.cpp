#include "simt/watchdog.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "simt/executor.h"

namespace simt {
namespace {

std::atomic<int> seconds{0};
std::mutex mutex;
std::condition_variable ended;
std::thread watcher;
bool running = false;

// Reads a count that another host thread writes: any value seen will do.
uint64_t read(const uint64_t& switches) { return __atomic_load_n(&switches, __ATOMIC_RELAXED); }

void watch(const uint64_t* switches) {
  std::unique_lock lock(mutex);
  uint64_t before = read(*switches);
  while (!ended.wait_for(lock, std::chrono::seconds(seconds), [] { return !running; })) {
    const uint64_t now = read(*switches);
    if (now == before) {
      std::fprintf(stderr, "simt: a thread has run for %d s without a scheduling point\n",
                   seconds.load());
      std::abort();
    }
    before = now;
  }
}

}  // namespace

void set_watchdog(int limit) { seconds = limit; }

Watched::Watched(const uint64_t& switches) {
  if (seconds == 0) return;
  running = true;
  watcher = std::thread(watch, &switches);
}

Watched::~Watched() {
  if (!watcher.joinable()) return;
  {
    const std::lock_guard lock(mutex);
    running = false;
  }
  ended.notify_one();
  watcher.join();
}

}  // namespace simt
