// Threads of a block: indices, shared memory, sync_block, sync_named.
#include <set>

#include "toys.h"

namespace {

using namespace toys;

enum class Bug { kNone, kNoBarrier, kEarlyExit, kTwoPlaces };

struct ReduceArgs {
  const float* x;
  float* sums;
  int64_t count;  // of a block's numbers
  Bug bug;
};

// sums[b] = sum of x[b · count ..).
RNNFAST_KERNEL(256) reduce(RNNFAST_ARGS ReduceArgs args) {
  RNNFAST_SHARED_ARRAY(float, parts, 8);
  const float* x = args.x + block_x() * args.count;
  float sum = 0;
  for (int64_t i = thread_index(); i < args.count; i += block_threads()) sum += load_once(x + i);
  for (int bit = 16; bit > 0; bit /= 2) sum += shuffle_xor(kAll, sum, bit);
  if (lane() == 0) parts[warp()] = sum;
  if (args.bug == Bug::kEarlyExit && warp() == 3) return;
  if (args.bug == Bug::kTwoPlaces && warp() == 0) {
    sync_block();
  } else if (args.bug != Bug::kNoBarrier) {
    sync_block();
  }
  if (thread_index() == 0) {
    float total = 0;
    for (int w = 0; w < block_threads() / 32; ++w) total += parts[w];
    store(args.sums + block_x(), total);
  }
}

std::vector<float> reduce_ones(Bug bug, int blocks) {
  const std::vector<float> x(blocks * 1000, 1.0f);
  std::vector<float> sums(blocks, -1.0f);
  launch<ReduceArgs>({"reduce", blocks, 1, 256, 0, false}, reduce,
                     {x.data(), sums.data(), 1000, bug}, nullptr);
  return sums;
}

const auto kRight = std::vector<float>(5, 1000.0f);

TEST(a_block_reduces) {
  under_schedules([] { CHECK(reduce_ones(Bug::kNone, 5) == kRight); });
}

FAULT_TEST(a_missing_barrier_shows_as_wrong_numbers) {
  CHECK(wrong_schedules([] { return reduce_ones(Bug::kNoBarrier, 5) == kRight; }) == kSchedules);
}

FAULT_TEST(a_thread_that_exits_early_is_named) {
  const auto run = [] { reduce_ones(Bug::kEarlyExit, 5); };
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of(run);
    const bool exits = contains(failure, "of its block wait at sync_block at");
    const bool comes_late = contains(failure, "threads of the block have exited");
    CHECK_IN(exits || comes_late, failure);
    CHECK_IN(contains(failure, "reduce: block ("), failure);
  }
}

FAULT_TEST(a_barrier_in_two_places_is_no_barrier) {
  CHECK_FAILS([] { reduce_ones(Bug::kTwoPlaces, 5); },
              "sync_block while other threads of the block wait at another");
}

struct LateArgs {
  unsigned* ended;
};

// Thread 0 comes to the barrier when all others have exited.
RNNFAST_KERNEL(64) come_late(RNNFAST_ARGS LateArgs args) {
  if (thread_index() > 0) {
    add_release<Scope::kBlock>(args.ended, 1u);
    return;
  }
  while (load_acquire<Scope::kBlock>(args.ended) < 63) pause();
  for (int i = 0; i < 200; ++i) pause();
  sync_block();
}

FAULT_TEST(a_barrier_after_an_exit_is_refused) {
  CHECK_FAILS(
      [] {
        unsigned ended = 0;
        launch<LateArgs>({"come_late", 1, 1, 64, 0, false}, come_late, {&ended}, nullptr);
      },
      "thread 0: sync_block after 63 threads of the block have exited");
}

FAULT_TEST(the_executor_works_after_a_failure) {
  CHECK(failure_of([] { reduce_ones(Bug::kEarlyExit, 3); }) != "");
  CHECK(reduce_ones(Bug::kNone, 5) == kRight);
}

// ---- indices

struct IndexArgs {
  int* seen;  // [grid_y, grid_x, threads]
};

RNNFAST_KERNEL(96) indices(RNNFAST_ARGS IndexArgs args) {
  const int block = block_y() * grid_x() + block_x();
  int* at = args.seen + block * block_threads() + thread_index();
  store(at, *at + lane() + 100 * warp() + 1000 * grid_y());
}

TEST(every_thread_of_every_block_runs_once) {
  under_schedules([] {
    std::vector<int> seen(5 * 3 * 96, 0);
    simt::set_resident_threads(400);  // 4 blocks at once
    launch<IndexArgs>({"indices", 5, 3, 96, 0, false}, indices, {seen.data()}, nullptr);
    simt::set_resident_threads(32768);
    bool right = true;
    for (size_t i = 0; i < seen.size(); ++i) {
      const int thread = static_cast<int>(i % 96);
      right = right && seen[i] == thread % 32 + 100 * (thread / 32) + 3000;
    }
    CHECK(right);
  });
}

// ---- shared memory

struct SharedArgs {
  unsigned* out;
};

template <int kWhich>
RNNFAST_DEVICE unsigned* own_array() {
  RNNFAST_SHARED_ARRAY(unsigned, array, 4);
  return array;
}

RNNFAST_KERNEL(32) look_at_shared(RNNFAST_ARGS SharedArgs args) {
  RNNFAST_SHARED_DYNAMIC(dynamic);
  if (thread_index() != 0) return;
  store(args.out + 0, *reinterpret_cast<unsigned*>(dynamic));
  store(args.out + 1, own_array<0>()[3]);
  store(args.out + 2, unsigned{own_array<0>() != own_array<1>()});
  store(args.out + 3, unsigned{own_array<0>() == own_array<0>()});
  store(args.out + 4, static_cast<unsigned>(reinterpret_cast<uintptr_t>(dynamic) % 128));
  own_array<0>()[3] = 7;
}

TEST(shared_memory_starts_as_nan_and_each_array_is_its_own) {
  for (int launches = 0; launches < 2; ++launches) {
    std::vector<unsigned> out(5, 1);
    launch<SharedArgs>({"look_at_shared", 1, 1, 32, 256, false}, look_at_shared, {out.data()},
                       nullptr);
    CHECK((out == std::vector<unsigned>{0xFFFFFFFFu, 0xFFFFFFFFu, 1, 1, 0}));
  }
}

// ---- named barriers

enum class NamedBug { kNone, kWrongId, kWrongCount, kTooFew, kBadId, kBadCount };

struct NamedArgs {
  int* out;  // [4], a warp each
  NamedBug bug;
};

// Warps 0 and 1 exchange a number, and so do 2 and 3, each pair at a barrier of its own.
RNNFAST_KERNEL(128) pairs(RNNFAST_ARGS NamedArgs args) {
  RNNFAST_SHARED_ARRAY(int, slots, 4);
  const int pair = warp() / 2;
  if (lane() == 0) slots[warp()] = 10 + warp();
  int id = 1 + pair, threads = 64;
  if (args.bug == NamedBug::kWrongId && warp() == 3) id = 3;
  if (args.bug == NamedBug::kWrongCount && warp() == 3) threads = 32;
  if (args.bug == NamedBug::kTooFew && warp() == 3) return;
  if (args.bug == NamedBug::kBadId) id = 16;
  if (args.bug == NamedBug::kBadCount) threads = 40;
  sync_named(id, threads);
  if (lane() == 0) store(args.out + warp(), slots[warp() ^ 1]);
}

std::vector<int> run_pairs(NamedBug bug) {
  std::vector<int> out(4, 0);
  launch<NamedArgs>({"pairs", 1, 1, 128, 0, false}, pairs, {out.data(), bug}, nullptr);
  return out;
}

TEST(named_barriers_hold_their_own_threads) {
  under_schedules([] { CHECK((run_pairs(NamedBug::kNone) == std::vector<int>{11, 10, 13, 12})); });
}

FAULT_TEST(a_wrong_barrier_ends_in_a_deadlock_that_names_who_waits) {
  CHECK_FAILS([] { run_pairs(NamedBug::kWrongId); },
              "deadlock: every thread waits\n  block (0, 0): 32 threads");
  CHECK_FAILS([] { run_pairs(NamedBug::kWrongId); }, "32 of 64 have arrived");
  CHECK_FAILS([] { run_pairs(NamedBug::kTooFew); }, "sync_named at ");
}

FAULT_TEST(a_barrier_with_two_counts_is_refused) {
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of([] { run_pairs(NamedBug::kWrongCount); });
    // Where warp 3 had passed alone, warp 2 waits for it in vain.
    CHECK_IN(contains(failure, "sync_named: barrier 2 with") || contains(failure, "deadlock"),
             failure);
  }
}

FAULT_TEST(a_barrier_that_does_not_exist_is_refused) {
  CHECK_FAILS([] { run_pairs(NamedBug::kBadId); }, "sync_named: barrier 16 of 1 to 15");
  CHECK_FAILS([] { run_pairs(NamedBug::kBadCount); }, "no multiple of 32");
}

}  // namespace
