// Asynchronous copies: a two-stage pipeline, and what goes wrong without its waits.
#include "toys.h"

namespace {

using namespace toys;

enum class Bug {
  kNone,
  kNoWait,
  kWaitTooFew,
  kWriteInFlight,
  kMisaligned,
  kNotShared,
  kTooLong,
  kNoBarrierBeforeReuse
};

struct Four {
  float at[4];
};

struct PipelineArgs {
  const float* x;  // [stages, 32, 4]
  float* sums;     // [32]
  int stages;
  int last_bytes;  // that the last stage's copies read
  Bug bug;
};

// Thread t of a warp sums what thread t + 1 has copied.
RNNFAST_KERNEL(32) pipeline(RNNFAST_ARGS PipelineArgs args) {
  RNNFAST_SHARED_ARRAY(float, buffers, 2 * 128);
  const auto place = [&](int stage, int thread) { return buffers + stage % 2 * 128 + 4 * thread; };
  const auto issue = [&](int stage) {
    if (stage < args.stages) {
      const bool last = stage == args.stages - 1;
      const int off = args.bug == Bug::kMisaligned ? 1 : 0;
      copy_async_16(place(stage, lane()), args.x + 128 * stage + 4 * lane() + off,
                    args.bug == Bug::kTooLong ? 17
                    : last                    ? args.last_bytes
                                              : 16);
    }
    copy_async_commit();
  };
  Four elsewhere = {};
  if (args.bug == Bug::kNotShared) copy_async_16(&elsewhere, args.x, 16);
  issue(0);
  if (args.bug == Bug::kWriteInFlight) place(0, lane())[2] = 5;
  float sum = 0;
  for (int stage = 0; stage < args.stages; ++stage) {
    issue(stage + 1);
    if (args.bug == Bug::kWaitTooFew) {
      copy_async_wait<2>();
    } else if (args.bug != Bug::kNoWait) {
      copy_async_wait<1>();
    }
    sync_warp(kAll);
    for (int i = 0; i < 4; ++i) sum += place(stage, (lane() + 1) % 32)[i];
    if (args.bug != Bug::kNoBarrierBeforeReuse) sync_warp(kAll);
  }
  if (args.bug != Bug::kNoWait) copy_async_wait<0>();
  store(args.sums + lane(), sum);
}

constexpr int kStages = 6;

std::vector<float> run_pipeline(Bug bug, int last_bytes = 16, int stages = kStages) {
  alignas(16) static float x[kStages * 128 + 4];
  for (int i = 0; i < kStages * 128; ++i) x[i] = static_cast<float>(i % 128 / 4 + 1);
  std::vector<float> sums(32);
  launch<PipelineArgs>({"pipeline", 1, 1, 32, 0, false}, pipeline,
                       {x, sums.data(), stages, last_bytes, bug}, nullptr);
  return sums;
}

std::vector<float> expected(int last_bytes) {
  std::vector<float> sums(32);
  for (int t = 0; t < 32; ++t)
    sums[t] = static_cast<float>((t + 1) % 32 + 1) * (5 * 4 + last_bytes / 4);
  return sums;
}

TEST(a_pipeline_of_copies) {
  under_schedules([] {
    CHECK(run_pipeline(Bug::kNone) == expected(16));
    CHECK(run_pipeline(Bug::kNone, 8) == expected(8));
    CHECK(run_pipeline(Bug::kNone, 0) == expected(0));
  });
}

FAULT_TEST(a_wait_for_too_few_groups_shows_as_wrong_numbers) {
  CHECK(wrong_schedules([] { return run_pipeline(Bug::kWaitTooFew) == expected(16); }) ==
        kSchedules);
}

FAULT_TEST(a_missing_barrier_before_a_buffer_is_reused_shows_as_wrong_numbers) {
  CHECK(wrong_schedules([] { return run_pipeline(Bug::kNoBarrierBeforeReuse) == expected(16); }) >
        kSchedules / 2);
}

FAULT_TEST(a_missing_wait_is_caught_at_the_latest_at_the_end) {
  CHECK_FAILS([] { run_pipeline(Bug::kNoWait, 16, 1); },
              "exits without having waited for an asynchronous copy, at ");
  CHECK_FAILS([] { run_pipeline(Bug::kNoWait); },
              "copy_async_16: a copy into this place has not been waited for, issued at ");
}

FAULT_TEST(a_write_into_a_copy_in_flight_is_caught) {
  int caught = 0;
  for (int seed = 1; seed <= kSchedules; ++seed) {
    simt::set_seed(seed);
    const std::string failure = failure_of([] { run_pipeline(Bug::kWriteInFlight); });
    caught += contains(failure, "was written while the asynchronous copy into it was in flight");
  }
  CHECK(caught == kSchedules);
}

FAULT_TEST(copies_are_checked_when_issued) {
  CHECK_FAILS([] { run_pipeline(Bug::kMisaligned); },
              "copy_async_16: an address is no multiple of 16");
  CHECK_FAILS([] { run_pipeline(Bug::kNotShared); },
              "copy_async_16: the address is not in shared memory of this block");
  CHECK_FAILS([] { run_pipeline(Bug::kTooLong); }, "copy_async_16 of 17 bytes");
}

}  // namespace
