// Blocks that meet through global memory: a grid barrier, a chain of blocks, scopes, and blocks
// that never meet.
#include "toys.h"

namespace {

using namespace toys;

// Every thread of every block arrives; `counter` starts at 0 and only grows.
RNNFAST_DEVICE void grid_barrier(unsigned* counter, unsigned target) {
  sync_block();
  if (thread_index() == 0) {
    add_release<Scope::kDevice>(counter, 1u);
    while (load_acquire<Scope::kDevice>(counter) < target) pause();
  }
  sync_block();
}

enum class Bug { kNone, kNoBarrier, kSkippedOnce, kTooFew };

struct StepArgs {
  float* h;  // [steps + 1, blocks]
  unsigned* counter;
  int steps;
  Bug bug;
};

// h[t + 1, b] = 1 + the mean of h[t], by block b.
RNNFAST_KERNEL(64) steps(RNNFAST_ARGS StepArgs args) {
  const int blocks = grid_x();
  for (int t = 0; t < args.steps; ++t) {
    if (thread_index() == 17) {
      float sum = 0;
      for (int b = 0; b < blocks; ++b) sum += load_coherent(args.h + t * blocks + b);
      store(args.h + (t + 1) * blocks + block_x(), 1 + sum / static_cast<float>(blocks));
    }
    const bool skip = args.bug == Bug::kNoBarrier || (args.bug == Bug::kSkippedOnce && t == 3);
    if (args.bug == Bug::kTooFew && t == 3 && block_x() == 1) break;
    if (!skip) grid_barrier(args.counter, static_cast<unsigned>(blocks * (t + 1)));
    if (skip && thread_index() == 0) add_release<Scope::kDevice>(args.counter, 1u);
  }
}

bool steps_are_right(Bug bug) {
  constexpr int kBlocks = 5, kSteps = 8;
  std::vector<float> h((kSteps + 1) * kBlocks, -1000.0f);
  for (int b = 0; b < kBlocks; ++b) h[b] = 0;
  unsigned counter = 0;
  launch<StepArgs>({"steps", kBlocks, 1, 64, 0, true}, steps, {h.data(), &counter, kSteps, bug},
                   nullptr);
  for (int i = 0; i < kBlocks * (kSteps + 1); ++i) {
    if (h[i] != static_cast<float>(i / kBlocks)) return false;
  }
  return true;
}

TEST(a_grid_barrier_holds) {
  under_schedules([] { CHECK(steps_are_right(Bug::kNone)); });
}

FAULT_TEST(a_missing_grid_barrier_shows_as_wrong_numbers) {
  CHECK(wrong_schedules([] { return steps_are_right(Bug::kNoBarrier); }) == kSchedules);
  CHECK(wrong_schedules([] { return steps_are_right(Bug::kSkippedOnce); }) > kSchedules / 2);
}

FAULT_TEST(a_block_that_does_not_come_ends_in_a_livelock_that_names_who_polls) {
  for (int seed = 1; seed <= 3; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of([] { steps_are_right(Bug::kTooFew); });
    CHECK_IN(contains(failure, "livelock: threads poll and nothing else happens"), failure);
    CHECK_IN(contains(failure, "thread 0 polls at "), failure);
    CHECK_IN(contains(failure, "63 threads, the first is 1, sync_block at "), failure);
  }
}

// ---- a ring of blocks

struct RingArgs {
  int* data;
  unsigned* turn;
  int laps;
};

// Block b adds b + 1 when it is its turn, and passes the turn on.
RNNFAST_KERNEL(32) pass_around(RNNFAST_ARGS RingArgs args) {
  for (int lap = 0; lap < args.laps; ++lap) {
    if (thread_index() == 0) {
      const auto mine = static_cast<unsigned>(lap * grid_x() + block_x());
      while (load_acquire<Scope::kDevice>(args.turn) != mine) pause();
      store(args.data, 3 * load_coherent(args.data) % 1009 + block_x());
      add_release<Scope::kDevice>(args.turn, 1u);
    }
  }
}

TEST(blocks_take_turns) {
  int expected = 1;
  for (int lap = 0; lap < 10; ++lap) {
    for (int b = 0; b < 7; ++b) expected = 3 * expected % 1009 + b;
  }
  under_schedules([&] {
    int data = 1;
    unsigned turn = 0;
    launch<RingArgs>({"pass_around", 7, 1, 32, 0, true}, pass_around, {&data, &turn, 10}, nullptr);
    CHECK(data == expected);
  });
}

// ---- scopes and constant reads

enum class Access {
  kCount,
  kBlockScope,
  kWriteThenConstant,
  kConstantThenWrite,
  kMisaligned,
  kOwnBlockScope
};

struct AccessArgs {
  uint64_t* memory;  // [4]
  Access access;
};

RNNFAST_KERNEL(64) touch(RNNFAST_ARGS AccessArgs args) {
  switch (args.access) {
    case Access::kCount:
      atomic_add<Scope::kDevice>(args.memory, uint64_t{2});
      fence<Scope::kDevice>();
      break;
    case Access::kBlockScope:
      atomic_add<Scope::kBlock>(args.memory, uint64_t{2});
      break;
    case Access::kOwnBlockScope:
      atomic_add<Scope::kBlock>(args.memory + block_x(), uint64_t{2});
      break;
    case Access::kWriteThenConstant:
      if (thread_index() == 3) store(args.memory + 1, uint64_t{5});
      sync_block();
      if (thread_index() == 4) load_once(reinterpret_cast<const int*>(args.memory) + 3);
      break;
    case Access::kConstantThenWrite:
      load_once(args.memory + 1);
      sync_block();
      if (thread_index() == 3) store_streaming(args.memory + 1, uint64_t{5});
      break;
    case Access::kMisaligned:
      load_coherent(
          reinterpret_cast<const uint64_t*>(reinterpret_cast<const char*>(args.memory) + 4));
      break;
  }
}

uint64_t run_touch(Access access) {
  alignas(16) uint64_t memory[4] = {};
  launch<AccessArgs>({"touch", 3, 1, 64, 0, false}, touch, {memory, access}, nullptr);
  return memory[0];
}

TEST(atomics_count) {
  under_schedules([] {
    CHECK(run_touch(Access::kCount) == 2 * 3 * 64);
    CHECK(run_touch(Access::kOwnBlockScope) == 2 * 64);
  });
}

FAULT_TEST(the_scope_of_an_atomic_must_reach_all_who_use_it) {
  CHECK_FAILS([] { run_touch(Access::kBlockScope); },
              "two blocks meet at an atomic of scope block");
}

FAULT_TEST(what_is_read_as_constant_is_not_written) {
  CHECK_FAILS([] { run_touch(Access::kWriteThenConstant); },
              "load_once of what was written in this launch");
  CHECK_FAILS([] { run_touch(Access::kConstantThenWrite); },
              "writes what load_once has read in this launch");
}

FAULT_TEST(accesses_are_aligned) {
  CHECK_FAILS([] { run_touch(Access::kMisaligned); }, "misaligned");
}

}  // namespace
