// Threads that work together and the account of the time that they lose: what is a crowd, for how
// long it is believed, and what no crowd is. The clocks are this test's.
#include <thread>
#include <vector>

#include "check.h"

#define RNNFAST_ISA region_test
#define RNNFAST_VECTOR_BYTES 16
#define RNNFAST_CLOCKS_ELSEWHERE
#include "cpu/region.h"
// after it
#include "cpu/pause.inc"
#include "cpu/threads.h"

namespace rnnfast::cpu::region_test {

int64_t time_now = 1000000000;                 // one for all
thread_local int64_t worked_here = 500000000;  // of each thread
thread_local int place = 0;

int64_t now() { return __atomic_load_n(&time_now, __ATOMIC_RELAXED); }
int64_t worked() { return worked_here; }
int processor() { return place; }

}  // namespace rnnfast::cpu::region_test

namespace {

using namespace rnnfast;
using namespace rnnfast::cpu::region_test;

constexpr int64_t kMs = 1000000;

// A crowd's times are given to it.
struct Account {
  Crowd crowd;
  int64_t time = 1000 * kMs;

  void note(int64_t wall, int64_t work) {
    time += wall;
    crowd.note(wall, work, time);
  }
  bool known() const { return crowd.known(time); }
  // For how long from now it is known.
  int64_t lasts() const {
    int64_t most = 0;
    while (crowd.known(time + most)) most += kMs;
    return most;
  }
};

TEST(short_regions_that_lose_their_time_are_a_crowd) {
  Account a;
  for (int k = 0; k < 5; ++k) {
    a.note(2 * kMs, kMs / 10);
    CHECK_IN(a.known() == (k == 4), std::to_string(k));
  }
}

TEST(one_hiccup_is_no_crowd) {
  Account a;
  a.note(10000 * kMs, kMs);
  CHECK(!a.known() && a.crowd.suspected());
  a.note(2 * kMs, 4 * kMs);  // both worked all the time
  CHECK(!a.crowd.suspected());
  a.note(10000 * kMs, kMs);
  CHECK(!a.known());
  a.note(10000 * kMs, kMs);
  CHECK(a.known());
}

TEST(who_has_less_to_do_than_another_loses_nothing) {
  Account a;
  for (int k = 0; k < 1000; ++k) a.note(50 * kMs, 50 * kMs + 1);  // one had all the work
  for (int k = 0; k < 1000; ++k) a.note(50 * kMs, 25 * kMs);  // half of the time for each of two
  CHECK(!a.known() && !a.crowd.suspected());
}

TEST(a_crowd_is_believed_for_as_long_again_as_it_lasted) {
  Account a;
  a.crowd.seen(a.time);
  CHECK(a.lasts() == 100 * kMs);
  a.time += 1000 * kMs;
  CHECK(!a.known());
  a.note(4 * kMs, kMs);  // the first look finds it
  CHECK(a.lasts() == 1004 * kMs);
  a.time += 60000 * kMs;
  a.note(4 * kMs, kMs);
  CHECK(a.lasts() == 5000 * kMs);
}

TEST(a_crowd_that_went_is_forgotten) {
  Account a;
  a.crowd.seen(a.time);
  a.time += 1000 * kMs;
  for (int k = 0; k < 4; ++k) a.note(kMs, 2 * kMs);
  a.note(4 * kMs, kMs);
  CHECK(!a.known());
  a.crowd.seen(a.time);
  CHECK(a.lasts() == 100 * kMs);
}

TEST(in_a_crowd_one_thread_does_what_is_small) {
  Crowd crowd;
  CHECK(crowd.threads(2, 1e3) == 2 && crowd.threads(2, 1e9) == 2);
  crowd.seen();
  CHECK(crowd.threads(2, 1e3) == 1 && crowd.threads(2, 1e9) == 2);
}

// Two threads, of which each works for its time while `wall` passes; the second one's processor.
void region(Crowd& crowd, int64_t wall, int64_t first, int64_t second, int processor = 1) {
  time_now += kMs;
  const int64_t end = time_now + wall;
  Region region(crowd);
  const auto part = [&](int id, int) {
    worked_here += id == 0 ? first : second;
    if (id == 0) __atomic_store_n(&time_now, end, __ATOMIC_RELAXED);
    while (now() < end) std::this_thread::yield();
  };
  std::thread other([&] {
    place = processor;
    region.work(1, 2, part);
  });
  region.work(0, 2, part);
  other.join();
}

TEST(a_region_tells_what_its_threads_worked) {
  for (const bool crowded : {false, true}) {
    Crowd crowd;
    region(crowd, 10 * kMs, crowded ? 2 * kMs : 6 * kMs, crowded ? kMs : 5 * kMs);
    CHECK_IN(crowd.suspected() == crowded, std::to_string(crowded));
  }
}

TEST(a_thread_that_is_late_by_its_own_work_is_no_crowd) {
  Crowd crowd;
  region(crowd, 10 * kMs, 0, 9 * kMs);
  region(crowd, 10 * kMs, 9 * kMs, 0);
  CHECK(!crowd.suspected());
}

TEST(two_threads_on_one_processor_are_a_crowd) {
  Crowd crowd;
  region(crowd, 10 * kMs, 5 * kMs, 5 * kMs);
  CHECK(!crowd.suspected());
  region(crowd, 10 * kMs, 5 * kMs, 5 * kMs, 0);
  CHECK(crowd.suspected());
}

void check_parts() {
  for (const int n : {1, 2, 3, 8}) {
    for (int k = 0; k < 50; ++k) {
      std::vector<int> done(static_cast<size_t>(n), 0);
      cpu::on_threads(n, [&](int id, int found) {
        for (int part = id; part < n; part += found) done[static_cast<size_t>(part)] += 1;
      });
      for (const int times : done) CHECK_IN(times == 1, std::to_string(n));
    }
  }
}

TEST(a_region_ends_when_all_have_done_their_part) { check_parts(); }

TEST(and_in_a_crowd_by_threads_that_end_with_it) {
  crowd().seen();
  check_parts();
}

}  // namespace
