// The barrier of a team: also where its threads are more than there are processors, and where one
// comes so late that the others sleep.
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"

#define RNNFAST_ISA team_test
#define RNNFAST_VECTOR_BYTES 16
#include "cpu/team.h"
// after it
#include "cpu/pause.inc"

namespace {

using namespace rnnfast::cpu::team_test;

// Each of n threads counts its steps; after a wait all must have counted as many. `late`: which
// thread rests at every rest-th step.
void check_steps(int n, int steps, int late, int rest) {
  Barrier barrier;
  std::vector<int> counts(static_cast<size_t>(n), 0);
  int wrong = 0;
  std::vector<std::thread> threads;
  for (int id = 0; id < n; ++id) {
    threads.emplace_back([&, id] {
      for (int step = 1; step <= steps; ++step) {
        if (id == late && step % rest == 0) {
          std::this_thread::sleep_for(std::chrono::microseconds(300));
        }
        counts[static_cast<size_t>(id)] = step;
        barrier.wait(n);
        for (const int count : counts) {
          if (count != step) __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        }
        barrier.wait(n);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_IN(wrong == 0, std::to_string(n) + " threads, " + std::to_string(late) + " late");
}

TEST(all_meet_at_every_step) {
  for (const int n : {1, 2, 3, 8, 17}) check_steps(n, 300, -1, 1);
}

TEST(sleepers_are_woken) {
  for (const int n : {2, 3, 8}) {
    check_steps(n, 100, 0, 1);
    check_steps(n, 100, n - 1, 7);
  }
}

}  // namespace
