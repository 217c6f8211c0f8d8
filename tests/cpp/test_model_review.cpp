// What readers of the kernels' machine code found the cost model too rosy in, as relations that any
// values of its constants should keep.
#include <algorithm>
#include <string>

#include "check.h"
#include "cuda/plan/plan.h"

namespace {

using namespace rnnfast;
using namespace rnnfast::cuda;

const Device kH100 = device_by_name("H100");
const Rates kRates = rates_of(kH100);

PlanProblem lstm(int64_t H, int64_t B = 16, int64_t T = 50) {
  PlanProblem p;
  p.cell = CellId::kLstm, p.dtype = DType::kBFloat16;
  p.T = T, p.B = B, p.H = p.P = H;
  return p;
}

// ns of a launch.
double load_of_one_block(int64_t H) {
  const PlanProblem p = lstm(H);
  return solo_step(p, Math::kBf16, {3, 3}, kH100, kRates, kEstimated).load * double(p.T);
}

StepCost grid(const PlanProblem& p, int blocks) {
  return team_step(p, Math::kBf16, {TeamKind::kGrid, blocks, 1, 4}, kH100, kRates, kEstimated);
}

// Bytes of a step through memory: 4 gates in, 4 saved, y, each of 2; c of 4.
double traffic(const PlanProblem& p) { return double(p.B * p.H) * 22; }

}  // namespace

TEST(stepwise_costs_the_host_a_product_and_a_launch_for_each_phase) {
  const double product = 7000, launch = kRates.queued_launch_ns;
  for (const int64_t H : {64, 128, 1024}) {
    PlanProblem p = lstm(H);
    CHECK(stepwise_step(p, kH100, kRates).total >= product + launch);
    p.directions = 2;
    CHECK(stepwise_step(p, kH100, kRates).total >= 2 * (product + launch));
    p.cell = CellId::kGruResetBefore, p.directions = 1;
    CHECK(stepwise_step(p, kH100, kRates).total >= 2 * (product + launch));
  }
  CHECK(plan_cuda(lstm(128), kH100, "stepwise").step_ns >= product + launch);
}

TEST(single_values_of_a_matrix_take_10_to_25_us_to_load) {
  for (const int64_t H : {131, 147, 163, 179}) {
    const double ns = load_of_one_block(H);
    CHECK_IN(ns > 10'000 && ns < 25'000, std::to_string(H) + ": " + std::to_string(ns));
  }
}

TEST(rows_that_are_aligned_load_faster_and_not_for_nothing) {
  for (const int64_t H : {136, 152, 168, 184}) {
    const double ns = load_of_one_block(H), read = 4.0 * double(H * H) * 2 / 32 / kH100.clock_ghz;
    CHECK_IN(ns * 2 < load_of_one_block(H - 1), std::to_string(H));
    CHECK_IN(ns > read, std::to_string(H));
  }
}

TEST(a_launch_with_the_weights_of_1024_units_pays_for_them) {
  for (const int64_t T : {1, 50}) {
    const PlanProblem p = lstm(1024, 8, T);
    const StepCost c = grid(p, 64);
    // of a block, at the rate of L2, after the way of the first
    const double read = (128.0 * 1024 / 32 + kRates.dram_latency_cycles) / kH100.clock_ghz;
    CHECK(c.load * double(T) >= 0.999 * read);
    CHECK(c.total * double(T) > kRates.launch_ns + 0.999 * read);
    CHECK(grid(lstm(1023, 8, T), 64).load > 2 * c.load);  // rows that begin anywhere
  }
}

TEST(whoever_polls_a_counter_waits_for_the_others_who_do) {
  const PlanProblem p = lstm(1024, 8, 1000);
  CHECK(grid(p, 128).exchange > grid(p, 64).exchange);
  CHECK(grid(p, 64).exchange > grid(p, 32).exchange);
  const StepCost cluster =
      team_step(p, Math::kBf16, {TeamKind::kCluster, 16, 1, 4}, kH100, kRates, kEstimated);
  CHECK(grid(p, 16).barrier > cluster.barrier);  // passes on what one thread has seen
}

TEST(gates_that_l2_does_not_hold_come_at_the_rate_of_memory) {
  const PlanProblem few = lstm(128, 4096, 1), many = lstm(128, 4096, 1000);
  const double from_memory = traffic(many) / kRates.dram_bytes_per_ns;
  const auto solo = [](const PlanProblem& p) {
    return solo_step(p, Math::kBf16, {2, 4}, kH100, kRates, kEstimated);
  };
  CHECK_NEAR(solo(many).limits.bytes, from_memory, 1e-12);
  CHECK(solo(few).limits.bytes < from_memory / 2);  // 11 MB
}

TEST(a_stepwise_product_hides_none_of_it) {
  const Device device = device_by_name("RTX 4090");
  const Rates rates = rates_of(device);
  const PlanProblem few = lstm(128, 4096, 1), many = lstm(128, 4096, 1000);
  const double from_memory = traffic(many) / rates.dram_bytes_per_ns;
  CHECK(stepwise_step(many, device, rates).pointwise >= from_memory);
  CHECK(stepwise_step(few, device, rates).pointwise < from_memory);
}

TEST(a_plan_is_never_expected_to_be_faster_than_memory) {
  for (const int64_t H : {64, 128, 256, 512}) {
    for (const int64_t B : {16, 1024, 4096, 16384}) {
      const PlanProblem p = lstm(H, B, 1000);
      for (const char* forced : {"", "stepwise"}) {
        CHECK_IN(plan_cuda(p, kH100, forced).step_ns >= traffic(p) / kRates.dram_bytes_per_ns,
                 std::to_string(H) + " " + std::to_string(B) + " " + forced);
      }
    }
  }
}

// Resets and gates are asked for two steps ahead.
TEST(two_steps_are_longer_than_a_read_of_memory) {
  for (const char* name : {"A100", "H100", "RTX 4090", "B200"}) {
    const Device device = device_by_name(name);
    PlanProblem p = lstm(8, 1, 100'000);
    p.cell = CellId::kRnnRelu;
    const StepCost c = solo_step(p, Math::kBf16, {1, 4}, device, rates_of(device), kEstimated);
    CHECK_IN(c.fetch == 0, name);
  }
}

TEST(a_scan_of_a_few_steps_is_one_launch) {
  for (const int64_t T : {1, 2, 5}) {
    for (const int64_t H : {64, 128, 512}) {
      CHECK_IN(plan_cuda(lstm(H, 16, T), kH100).strategy != Strategy::kStepwise,
               std::to_string(H) + " " + std::to_string(T));
    }
  }
}
