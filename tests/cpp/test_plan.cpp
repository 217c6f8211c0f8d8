// Which split of the work the cost model takes, for hosts that need not be this one.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "scan/plan.h"

namespace {

using namespace rnnfast;

constexpr int64_t kKiB = 1024;

Host host(int threads, int64_t l2_bytes = 1024 * kKiB) { return {threads, 64, l2_bytes}; }

HostPlan plan(CellId cell, int64_t B, int64_t H, const Host& on, Widths widths = {}) {
  const CellInfo& info = cell_info(cell);
  return plan_host(info, B, H, info.projected() && H > 1 ? H / 2 : H, widths, on);
}

std::string label(const CellInfo& cell, int64_t B, int64_t H, const Host& on) {
  return std::string(cell.name) + " B" + std::to_string(B) + " H" + std::to_string(H) + " on " +
         std::to_string(on.threads) + " threads";
}

// f(cell, B, H, host) over many problems and hosts.
template <class F>
void for_each_problem(F&& f) {
  for (const CellInfo& cell : kCells) {
    for (const int64_t B : {0, 1, 3, 32, 1000}) {
      for (const int64_t H : {1, 7, 64, 257, 2048}) {
        for (const int threads : {1, 2, 16, 64}) {
          for (const int64_t l2 : {256 * kKiB, 16384 * kKiB}) f(cell, B, H, host(threads, l2));
        }
      }
    }
  }
}

}  // namespace

TEST(a_plan_fits_the_host_and_the_problem) {
  for_each_problem([](const CellInfo& cell, int64_t B, int64_t H, const Host& on) {
    for (const Widths widths : {Widths{4, 4}, Widths{4, 2}, Widths{8, 8}}) {
      const HostPlan found = plan(cell.id, B, H, on, widths);
      const std::string context = label(cell, B, H, on) + ": " + found.describe();
      CHECK_IN(found.rows >= 1 && found.units >= 1, context);
      CHECK_IN(found.rows * found.units <= on.threads, context);
      CHECK_IN(found.rows <= std::max<int64_t>(B, 1), context);
      CHECK_IN(found.units <= H, context);
      CHECK_IN(std::isfinite(found.step_ns) && found.step_ns >= 0, context);
    }
  });
}

TEST(more_threads_or_cache_are_never_expected_to_be_slower) {
  for_each_problem([](const CellInfo& cell, int64_t B, int64_t H, const Host& on) {
    const double ns = plan(cell.id, B, H, on).step_ns;
    CHECK_IN(plan(cell.id, B, H, {on.threads * 2, 64, on.l2_bytes}).step_ns <= ns,
             label(cell, B, H, on) + " and twice the threads");
    CHECK_IN(plan(cell.id, B, H, {on.threads, 64, on.l2_bytes * 8}).step_ns <= ns,
             label(cell, B, H, on) + " and eight times the cache");
  });
}

TEST(one_thread_is_one_part) {
  for_each_problem([](const CellInfo& cell, int64_t B, int64_t H, const Host& on) {
    const HostPlan found = plan(cell.id, B, H, host(1, on.l2_bytes));
    CHECK_IN(found.rows == 1 && found.units == 1, label(cell, B, H, on));
  });
}

TEST(a_large_batch_with_small_weights_is_resident) {
  for (const CellInfo& cell : kCells) {
    for (const int threads : {2, 16, 64}) {
      const HostPlan found = plan(cell.id, 1024, 64, host(threads));
      CHECK_IN(found.resident() && found.rows == threads, label(cell, 1024, 64, host(threads)));
    }
  }
}

TEST(one_sequence_with_large_weights_splits_the_units) {
  for (const CellInfo& cell : kCells) {
    for (const int threads : {2, 16, 64}) {
      const HostPlan found = plan(cell.id, 1, 2048, host(threads));
      CHECK_IN(found.rows == 1 && found.units > threads / 4,
               label(cell, 1, 2048, host(threads)) + ": " + found.describe());
    }
  }
}

TEST(a_tiny_scan_is_not_worth_a_second_thread) {
  for (const CellInfo& cell : kCells) {
    for (const int64_t H : {1, 8}) {
      const HostPlan found = plan(cell.id, 1, H, host(64));
      CHECK_IN(found.rows == 1 && found.units == 1, label(cell, 1, H, host(64)));
    }
  }
}

TEST(weights_that_leave_the_cache_are_split_sooner) {
  // 1 MiB of weights: they fit into the large cache of one core, not into half of the small one
  const HostPlan small = plan(CellId::kLstm, 1, 256, host(2, 512 * kKiB));
  const HostPlan large = plan(CellId::kLstm, 1, 256, host(2, 8192 * kKiB));
  CHECK(small.units == 2);
  CHECK(small.step_ns > large.step_ns);
}

TEST(weights_in_pairs_leave_the_cache_later) {
  // 1 MiB of weights as floats, which take longer to read than to multiply with
  const Host on = host(2, 512 * kKiB);
  const HostPlan floats = plan(CellId::kLstm, 1, 256, on);
  const HostPlan pairs = plan(CellId::kLstm, 1, 256, on, {4, 2});
  CHECK(floats.units == 2);
  CHECK(pairs.step_ns < floats.step_ns);
  const Host large = host(2, 768 * kKiB);  // of which a half fits into one core's cache
  CHECK(plan(CellId::kLstm, 1, 256, large).step_ns >
        plan(CellId::kLstm, 1, 256, large, {4, 2}).step_ns);
}

TEST(a_plan_says_what_it_does) {
  HostPlan resident, several, stepwise;
  several.rows = 4;
  stepwise.rows = 2, stepwise.units = 3;
  CHECK(resident.describe() == "resident: 1 thread, each with its own sequences for all steps");
  CHECK(several.describe() == "resident: 4 threads, each with its own sequences for all steps");
  CHECK(stepwise.describe() ==
        "stepwise: 6 threads, 2 x 3 parts of the batch x hidden units, which meet at every step");
}
