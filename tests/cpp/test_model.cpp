// The cost model: each term against arithmetic done here by hand, and what must follow from it.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "check.h"
#include "cuda/plan/model.h"

namespace {

using namespace rnnfast;
using namespace rnnfast::cuda;

constexpr double kClose = 1e-12;

PlanProblem problem(CellId cell, DType dtype, int64_t H, Pass pass = Pass::kForward) {
  PlanProblem p;
  p.pass = pass, p.cell = cell, p.dtype = dtype, p.tf32 = true;
  p.T = 100, p.B = 8, p.H = p.P = H;
  return p;
}

// A device of one cycle a ns, and rates that are easy to count with.
Device plain_device() { return {90, 100, 227 * 1024, 65536, 1.0}; }

Rates plain_rates() {
  Rates r = rates_of(plain_device());
  r.mma_cycles = 2, r.ffma_per_clock = 128, r.special_per_clock = 16;
  r.shared_bytes_per_clock = 128, r.l2_bytes_per_clock = 32;
  r.cluster_bytes_per_clock = 16, r.l2_latency_cycles = 300;
  r.step_latency_cycles = 200, r.block_barrier_cycles = 25;
  r.cluster_exchange_ns = 150, r.grid_barrier_ns = 700;
  r.l2_line_cycles = 1, r.dram_latency_cycles = 600;
  r.launch_ns = 5000, r.queued_launch_ns = 3000, r.product_host_ns = 7000;
  return r;
}

std::string refusal(void (*f)()) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

bool as_counted(double estimated, double counted) {
  return estimated > 0.8 * counted && estimated < 1.25 * counted;
}

}  // namespace

TEST(a_solo_step_is_the_sum_of_what_it_counts) {
  const PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 128);
  const StepCost c = solo_step(p, Math::kBf16, {2, 3}, plain_device(), plain_rates());
  CHECK_NEAR(c.mma, 32 * 4 * 2 * 2, kClose);                       // 512 rows, 4 slabs
  CHECK_NEAR(c.weights_from_shared, 32 * 1 * 1024 / 128, kClose);  // the fourth slab
  CHECK_NEAR(c.operands, 8 * 8 * 4 * 64 / 128, kClose);            // 8 warps read 8 rows
  CHECK_NEAR(c.specials, 128 * 8 * 10 / 16, kClose);
  CHECK_NEAR(c.latency + c.barrier, 225, kClose);
  // Of 4 tiles 3 slabs at once in registers; then of each tile 4, of which it has one. A slab is 2
  // loads of 16 bytes, 40 instructions of 8 warps for each.
  CHECK_NEAR(c.load, (4 * (3 + 4) * 2 * 40 * 8 / 4 + (1 + 4) * 600) / 100.0, kClose);
  CHECK_NEAR(c.launch, 50, kClose);
  CHECK_NEAR(c.total, 512 + 640 + 225 + c.load + c.launch, kClose);
  CHECK(c.exchange == 0 && c.partials == 0 && c.issue == 0 && c.fetch == 0);
  CHECK(c.products == 2 * 2 * 4 * 2);  // 2 groups of 2 tiles
}

TEST(rows_that_begin_anywhere_are_read_value_by_value) {
  const auto load = [](CellId cell, DType dtype, Math math, int64_t H, const Rates& rates) {
    return solo_step(problem(cell, dtype, H), math, {2, 4}, plain_device(), rates).load * 100;
  };
  const Rates rates = plain_rates();
  // a warp has 4 tiles of 4 slabs, 16 values of a thread each, one slab at a time; 124: no multiple of 8
  const double values = 4 * 4 * 16 * 20 * 8 / 4 + 4 * 4 * 600;
  CHECK_NEAR(load(CellId::kLstm, DType::kBFloat16, Math::kBf16, 123, rates), values, kClose);
  CHECK_NEAR(load(CellId::kLstm, DType::kBFloat16, Math::kBf16, 124, rates), values, kClose);
  CHECK(load(CellId::kLstm, DType::kBFloat16, Math::kBf16, 120, rates) < values / 2);
  // 8 slabs of 8 values; rows of 124 floats begin at multiples of 16 bytes
  const double floats = 4 * 8 * 8 * 20 * 8 / 4 + 4 * 8 * 600;
  CHECK_NEAR(load(CellId::kLstm, DType::kFloat32, Math::kTf32, 123, rates), floats, kClose);
  CHECK(load(CellId::kLstm, DType::kFloat32, Math::kTf32, 124, rates) < floats / 2);
  Rates slow = rates;  // L2
  slow.l2_bytes_per_clock = 4;
  CHECK_NEAR(load(CellId::kLstm, DType::kBFloat16, Math::kBf16, 128, slow),
             600 + 4 * 128 * 128 * 2 / 4, kClose);
}

TEST(strict_fp32_multiplies_on_the_ordinary_units) {
  const PlanProblem p = problem(CellId::kRnnTanh, DType::kFloat32, 64);
  const StepCost c = solo_step(p, Math::kFp32, {1, 8}, plain_device(), plain_rates());
  CHECK_NEAR(c.mma, 64 * 64 * 8 / 128, kClose);
  CHECK(c.products == 64 * 64 * 8 / 256.0 * 2);  // 4 of 8 warps have a tile
}

TEST(counted_instructions_replace_what_they_exceed) {
  const PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 128);
  const auto total = [&](double instructions) {
    return solo_step(p, Math::kBf16, {2, 4}, plain_device(), plain_rates(), instructions).total;
  };
  CHECK(total(100) == total(0));  // 200 clocks: behind the units' 1152
  CHECK_NEAR(total(1000) - total(100), 2000 - 1152, kClose);
  const Team team{TeamKind::kGrid, 16, 1, 4};
  const auto of_team = [&](double instructions) {
    return team_step(p, Math::kBf16, team, plain_device(), plain_rates(), instructions).total;
  };
  CHECK_NEAR(of_team(2000) - of_team(1000), 2000, kClose);
}

// What benchmarks/latency read for sm_90.
TEST(instructions_are_estimated_where_they_were_not_counted) {
  const auto instructions = [&](const StepCost& c) { return c.issue * 4 / 8; };
  const auto solo = [&](Pass pass, int64_t H, Shape shape) {
    return instructions(solo_step(problem(CellId::kLstm, DType::kBFloat16, H, pass), Math::kBf16,
                                  shape, plain_device(), plain_rates(), kEstimated));
  };
  CHECK(as_counted(solo(Pass::kForward, 64, {1, 2}), 414));
  CHECK(as_counted(solo(Pass::kForward, 128, {2, 4}), 635));
  CHECK(as_counted(solo(Pass::kForward, 160, {3, 3}), 1094));
  CHECK(as_counted(solo(Pass::kBackward, 128, {1, 16}), 1229));
  const auto other = [&](CellId cell, Pass pass, Shape shape) {
    return instructions(solo_step(problem(cell, DType::kBFloat16, 128, pass), Math::kBf16, shape,
                                  plain_device(), plain_rates(), kEstimated));
  };
  CHECK(as_counted(other(CellId::kRnnTanh, Pass::kForward, {1, 4}), 456));
  CHECK(as_counted(other(CellId::kRnnTanh, Pass::kBackward, {1, 4}), 477));
  CHECK(as_counted(other(CellId::kGru, Pass::kForward, {1, 4}), 549));
  CHECK(as_counted(other(CellId::kGruResetBefore, Pass::kForward, {1, 4}), 741));
  const auto team = [&](TeamKind kind, Pass pass, int64_t H, int blocks, int held) {
    return instructions(team_step(problem(CellId::kLstm, DType::kBFloat16, H, pass), Math::kBf16,
                                  {kind, blocks, 1, held}, plain_device(), plain_rates(),
                                  kEstimated));
  };
  CHECK(as_counted(team(TeamKind::kGrid, Pass::kForward, 512, 32, 4), 588));
  CHECK(as_counted(team(TeamKind::kCluster, Pass::kForward, 128, 8, 4), 567));
  CHECK(as_counted(team(TeamKind::kGrid, Pass::kBackward, 512, 16, 8), 788));
  CHECK(as_counted(team(TeamKind::kCluster, Pass::kBackward, 512, 16, 8), 721));
}

TEST(a_cluster_step_is_the_sum_of_what_it_counts) {
  const PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 512);
  const Team team{TeamKind::kCluster, 8, 1, 1};
  const StepCost c = team_step(p, Math::kBf16, team, plain_device(), plain_rates());
  // 64 units are 16 tiles of rows; 16 slabs of columns, 2 a warp, of which one in shared memory
  CHECK_NEAR(c.mma, 16 * 16 * 2 * 2, kClose);
  CHECK_NEAR(c.weights_from_shared, 16 * 8 * 1024 / 128, kClose);
  CHECK_NEAR(c.operands, 8 * 512 * 2 / 128, kClose);
  CHECK_NEAR(c.partials, 2 * 8 * 8 * 256 * 4 / 128, kClose);
  CHECK_NEAR(c.specials, 64 * 8 * 10 / 16, kClose);
  CHECK_NEAR(c.latency, 200, kClose);
  CHECK_NEAR(c.barrier, 50, kClose);
  CHECK_NEAR(c.exchange, 150 + 8 * 64 * 2 * 7 / 16, kClose);
  CHECK_NEAR(c.load, (16 * (1 + 4) * 2 * 20 * 8 / 4 + (1 + 16) * 600) / 100.0, kClose);
  CHECK(c.products == 16 * 2 * 2);
  const double products = 16 * 8 * 1024 / 128 + 8 * 512 * 2 / 128;  // exceed the mma's 1024
  CHECK_NEAR(c.total, products + c.partials + c.specials + 250 + c.exchange + c.load + 50, kClose);
}

TEST(a_grid_step_reads_its_operands_from_l2) {
  const PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 1024);
  const Team team{TeamKind::kGrid, 64, 1, 4};
  const StepCost c = team_step(p, Math::kBf16, team, plain_device(), plain_rates());
  CHECK_NEAR(c.mma, 4 * 32 * 2 * 2, kClose);  // 16 units are 64 rows
  CHECK(c.weights_from_shared == 0);          // 4 slabs a warp, all in registers
  CHECK_NEAR(c.operands, 8 * 1024 * 2 / 32, kClose);
  CHECK_NEAR(c.latency, 500, kClose);
  CHECK_NEAR(c.barrier, 75, kClose);
  CHECK_NEAR(c.exchange, 700 + 8 * 16 * 2 / 32.0, kClose);
  CHECK_NEAR(c.launch, 80, kClose);  // and zeroing the workspace
  CHECK_NEAR(c.total, 512 + c.partials + c.specials + 575 + c.exchange + c.load + c.launch, kClose);
  CHECK_NEAR(c.partials, 2 * 8 * 8 * 64 * 4 / 128, kClose);
}

TEST(the_device_bounds_what_all_read_from_l2) {
  Rates rates = plain_rates();
  rates.l2_device_bytes_per_clock = 1024;  // 64 blocks: 16 each
  const PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 1024);
  const StepCost c = team_step(p, Math::kBf16, {TeamKind::kGrid, 64, 1, 4}, plain_device(), rates);
  CHECK_NEAR(c.operands, 8 * 1024 * 2 / 16, kClose);
}

TEST(the_exchange_of_a_tile_hides_behind_the_work_of_the_others) {
  PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 1024);
  p.B = 32;
  const auto cost = [&](int tiles) {
    return team_step(p, Math::kBf16, {TeamKind::kGrid, 16, tiles, 4}, plain_device(),
                     plain_rates());
  };
  const StepCost one = cost(1), two = cost(2), four = cost(4);
  const double work = one.total - one.exchange - one.load - one.launch;
  CHECK(one.hidden == 0 && one.exchange > work / 10);
  CHECK_NEAR(two.hidden, std::min(one.exchange, work), kClose);
  CHECK_NEAR(two.total, 2 * work + one.exchange - two.hidden + one.load + one.launch, kClose);
  CHECK_NEAR(four.exchange, std::max(0.0, one.exchange - 3 * work), kClose);
}

TEST(teams_beyond_the_device_come_one_after_the_other) {
  PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 1024);
  const Team team{TeamKind::kCluster, 16, 1, 4};
  CHECK(cluster_blocks_at_once(16, plain_device(), plain_rates()) == 5 * 16);
  CHECK(cluster_blocks_at_once(8, device_by_name("H100"), plain_rates()) == 120);
  p.B = 8 * 5;
  const StepCost one = team_step(p, Math::kBf16, team, plain_device(), plain_rates());
  p.B = 8 * 6;
  const StepCost two = team_step(p, Math::kBf16, team, plain_device(), plain_rates());
  CHECK(one.waves == 1 && two.waves == 2);
  CHECK_NEAR(two.total - two.launch, 2 * (one.total - one.launch), kClose);
}

TEST(two_phases_exchange_twice) {
  const auto cost = [](CellId cell) {
    return team_step(problem(cell, DType::kBFloat16, 256), Math::kBf16, {TeamKind::kGrid, 8, 1, 4},
                     plain_device(), plain_rates());
  };
  const StepCost one = cost(CellId::kGru), two = cost(CellId::kGruResetBefore);
  CHECK_NEAR(two.exchange, 2 * one.exchange, kClose);
  CHECK_NEAR(two.barrier, 2 * one.barrier, kClose);
  CHECK_NEAR(two.operands, 2 * one.operands, kClose);
  CHECK(two.mma == one.mma);
}

TEST(a_scattered_backward_sends_sums_of_h_rows_and_a_gathered_one_all_gates) {
  const PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 1024, Pass::kBackward);
  Team team{TeamKind::kGrid, 32, 1, 2};
  const StepCost gathered = team_step(p, Math::kBf16, team, plain_device(), plain_rates());
  team.scattered = true;
  const StepCost scattered = team_step(p, Math::kBf16, team, plain_device(), plain_rates());
  CHECK_NEAR(gathered.operands, 8 * 4 * 1024 * 2 / 32, kClose);
  const double barrier = 700 - 2 * 32;  // 32 blocks fewer than 64, two requests each
  CHECK_NEAR(gathered.exchange, barrier + 8 * 4 * 32 * 2 / 32, kClose);
  CHECK_NEAR(scattered.exchange, barrier + 2 * 8 * 32 * 4 * 31 / 32, kClose);
  CHECK(scattered.partials == 0 && gathered.partials > 0);
  CHECK_NEAR(scattered.mma, gathered.mma, kClose);  // the same products
}

TEST(stepwise_is_bound_by_launches_or_by_work) {
  PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 64);
  const StepCost small = stepwise_step(p, plain_device(), plain_rates());
  CHECK(small.total == 10000 + 50 && small.launch == small.total);
  p.B = 65536;
  const StepCost large = stepwise_step(p, plain_device(), plain_rates());
  CHECK_NEAR(large.total, large.product + large.pointwise + 50, kClose);
  CHECK(large.total > 10050);
  p.directions = 2;
  const StepCost both = stepwise_step(p, plain_device(), plain_rates());
  CHECK_NEAR(both.total, 2 * large.total - 50, kClose);
}

TEST(a_step_waits_for_what_was_asked_for_two_steps_before) {
  PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 128);
  Rates rates = plain_rates();
  const auto solo = [&] { return solo_step(p, Math::kBf16, {2, 4}, plain_device(), rates); };
  const auto team = [&] {
    return team_step(p, Math::kBf16, {TeamKind::kCluster, 8, 1, 4}, plain_device(), rates);
  };
  const StepCost one = solo(), of_team = team();
  const double step = one.total - one.load - one.launch;
  const double turn = of_team.total - of_team.exchange - of_team.load - of_team.launch;
  rates.l2_latency_cycles = 10'000;
  CHECK_NEAR(solo().fetch, 10'000 - 2 * step, kClose);
  CHECK_NEAR(solo().total, one.total + solo().fetch, kClose);
  CHECK_NEAR(team().fetch, 10'000 - 2 * turn, kClose);
  CHECK_NEAR(team().total, of_team.total + team().fetch, kClose);
  p.T = 100'000;  // from DRAM
  CHECK(solo().fetch == 0);
  rates.dram_latency_cycles = 20'000;
  CHECK_NEAR(solo().fetch, 20'000 - 2 * step, kClose);
}

TEST(what_is_expected_is_never_less_than_what_memory_needs) {
  PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 64);
  p.B = 800;  // every SM has a block
  Rates rates = plain_rates();
  rates.dram_bytes_per_ns = 1;
  const StepCost c = solo_step(p, Math::kBf16, {1, 2}, plain_device(), rates);
  // 4 gates in, 4 saved, y: 2 bytes each; c: 4 bytes
  CHECK_NEAR(c.limits.bytes, 800 * 64 * (9 * 2 + 4), kClose);
  CHECK_NEAR(c.memory, 8 * 64 * 22 / 32, kClose);
  CHECK(c.expected() == c.limits.bytes && c.total < c.limits.bytes);
}

TEST(a_limit_is_below_every_step) {
  for (const char* name : {"A100", "H100", "RTX 4090", "B200"}) {
    const Device device = device_by_name(name);
    for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
      for (const int64_t B : {1, 64, 1000}) {
        PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 512, pass);
        p.B = B;
        const StepCost c =
            team_step(p, Math::kBf16, {TeamKind::kGrid, 32, 1, 4}, device, rates_of(device));
        CHECK_IN(c.limits.flops <= c.total && c.limits.specials <= c.total, name);
      }
    }
  }
}

TEST(every_rate_is_listed_positive_and_published_or_assumed) {
  CHECK(rate_list(Device{}).size() * sizeof(double) == sizeof(Rates));
  for (const char* name : {"A100", "H100", "RTX 4090", "B200", "T4"}) {
    const Device device = device_by_name(name);
    const Rates rates = rates_of(device);
    int assumed = 0;
    for (const RateInfo& rate : rate_list(device)) {
      CHECK_IN(rates.*rate.value > 0 && std::isfinite(rates.*rate.value), std::string(rate.name));
      if (rate.published.empty()) ++assumed;
    }
    CHECK_IN(assumed >= 13 && assumed <= 17, name);
  }
}

TEST(rates_can_be_replaced_by_name_only) {
  const Rates rates = with_rates(plain_rates(), {{"grid_barrier_ns", 650}, {"mma_cycles", 3}});
  CHECK(rates.grid_barrier_ns == 650 && rates.mma_cycles == 3);
  CHECK(rates.launch_ns == 5000);
  const std::string unknown = refusal([] { with_rates(plain_rates(), {{"grid_barrier", 1}}); });
  CHECK(unknown.find("no rate is called 'grid_barrier'; there are: mma_cycles, ") == 0);
  CHECK(unknown.find("product_host_ns") != std::string::npos);
  CHECK(refusal([] { with_rates(plain_rates(), {{"launch_ns", 0}}); }) ==
        "the rate launch_ns is not a positive number");
  CHECK(refusal([] {
          with_rates(plain_rates(), {{"launch_ns", std::numeric_limits<double>::infinity()}});
        }) == "the rate launch_ns is not a positive number");
}

TEST(no_team_is_refused) {
  CHECK(refusal([] {
          team_step(problem(CellId::kLstm, DType::kBFloat16, 64), Math::kBf16,
                    {TeamKind::kGrid, 0, 1, 1}, plain_device(), plain_rates());
        }).find("no team: 0 blocks") == 0);
  CHECK(refusal([] {
          team_step(problem(CellId::kLstm, DType::kBFloat16, 64), Math::kBf16,
                    {TeamKind::kGrid, 2, 1, 1, true}, plain_device(), plain_rates());
        }) == "only a backward pass can be scattered");
}
