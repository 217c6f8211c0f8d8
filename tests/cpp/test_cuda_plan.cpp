// Which kernel the plan takes, for devices that need not be here.
#include <array>
#include <cmath>
#include <stdexcept>

#include "check.h"
#include "cuda/plan/plan.h"

namespace {

using namespace rnnfast;
using namespace rnnfast::cuda;

constexpr const char* kDevices[] = {"A100", "H100", "RTX 4090", "B200", "T4"};
constexpr Pass kPasses[] = {Pass::kForward, Pass::kBackward};

PlanProblem problem(CellId cell, DType dtype, int64_t H, Pass pass = Pass::kForward) {
  PlanProblem p;
  p.pass = pass, p.cell = cell, p.dtype = dtype, p.tf32 = true;
  p.T = 100, p.B = 64, p.H = p.P = H;
  return p;
}

std::string label(const PlanProblem& p, const std::string& device) {
  return std::string(cell_info(p.cell).name) + " H" + std::to_string(p.H) + " dtype " +
         std::to_string(int(p.dtype)) + (p.pass == Pass::kForward ? " forward" : " backward") +
         " on " + device;
}

// The largest H that one block has.
int64_t largest(CellId cell, DType dtype, Pass pass, const char* device) {
  int64_t found = 0;
  for (int64_t H = 1; H <= 600; ++H) {
    if (why_not_resident(problem(cell, dtype, H, pass), device_by_name(device)).empty()) found = H;
  }
  return found;
}

// The message of the std::invalid_argument that f() throws, or "".
template <class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

// f(problem, device) over many problems and devices.
template <class F>
void for_each_problem(F&& f) {
  for (const char* name : kDevices) {
    for (const CellInfo& cell : kCells) {
      for (const DType dtype :
           {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16}) {
        for (const int64_t H : {1, 33, 64, 128, 192, 257, 2048}) {
          for (const Pass pass : kPasses) f(problem(cell.id, dtype, H, pass), name);
        }
      }
    }
  }
}

bool is_team(const CudaPlan& plan) {
  return plan.strategy == Strategy::kCluster || plan.strategy == Strategy::kGrid;
}

// A team's kernel fits, and all blocks of a grid are on the device at once.
void check_team(const PlanProblem& p, const CudaPlan& plan, const Device& device,
                const std::string& context) {
  const bool grid = plan.strategy == Strategy::kGrid;
  const TeamShapeList list = team_shapes(p.pass, p.cell);
  CHECK_IN(plan.shape >= 0 && plan.shape < list.size, context);
  CHECK_IN(team_fits({grid ? TeamKind::kGrid : TeamKind::kCluster, p.pass, p.cell, plan.math,
                      list.at[plan.shape]},
                     p.H, plan.blocks, plan.tiles, device.shared_limit),
           context);
  CHECK_IN(plan.teams * plan.tiles * 8 >= p.B, context);
  if (grid) {
    CHECK_IN(plan.teams * plan.blocks * p.directions <= device.sm_count, context);
  } else {
    CHECK_IN(device.sm >= 90 && plan.tiles == 1 && plan.blocks <= 16, context);
  }
}

}  // namespace

TEST(a_plan_fits_the_device_and_the_compiled_shapes) {
  int found[4] = {};
  for_each_problem([&](const PlanProblem& p, const char* name) {
    const Device device = device_by_name(name);
    const CudaPlan plan = plan_cuda(p, device);
    CHECK_IN(std::isfinite(plan.step_ns) && plan.step_ns > 0, label(p, name));
    CHECK_IN(!plan.text.empty(), label(p, name));
    ++found[int(plan.strategy)];
    if (plan.strategy == Strategy::kResident) {
      const ShapeList list = shapes(p.pass, p.cell, plan.math);
      CHECK_IN(plan.shape >= 0 && plan.shape < list.size, label(p, name));
      CHECK_IN(fits(p.pass, p.cell, plan.math, list.at[plan.shape], p.H, device.shared_limit),
               label(p, name));
    } else if (is_team(plan)) {
      check_team(p, plan, device, label(p, name));
    }
  });
  for (const Strategy strategy :
       {Strategy::kStepwise, Strategy::kResident, Strategy::kCluster, Strategy::kGrid}) {
    CHECK_IN(found[int(strategy)] > 5,
             std::string(name_of(strategy)) + ": " + std::to_string(found[int(strategy)]));
  }
}

TEST(what_has_no_resident_kernel_is_stepwise_and_says_why) {
  const Device h100 = device_by_name("H100"), t4 = device_by_name("T4");
  const auto why = [](const PlanProblem& p, const Device& device) {
    const CudaPlan plan = plan_cuda(p, device);
    return plan.strategy == Strategy::kStepwise ? plan.why : std::string(name_of(plan.strategy));
  };
  CHECK(why(problem(CellId::kLstm, DType::kFloat64, 64), h100) == "no resident kernel for float64");
  CHECK(why(problem(CellId::kLstmProj, DType::kBFloat16, 64), h100) ==
        "no resident kernel for lstm_proj");
  CHECK(why(problem(CellId::kLstm, DType::kFloat16, 64), t4) ==
        "resident kernels need compute capability 8.0");
  CHECK(why(problem(CellId::kLstm, DType::kBFloat16, 512), h100) == "grid");
  CHECK(why(problem(CellId::kLstm, DType::kBFloat16, 4096), h100) ==
        "H = 4096 in bf16 does not fit one block; H = 4096 in bf16 does not fit a grid of blocks");
  PlanProblem strict = problem(CellId::kLstm, DType::kFloat32, 512);
  strict.tf32 = false;
  CHECK(why(strict, h100) ==
        "H = 512 in fp32 does not fit one block; no team computes in strict fp32");
  Device small = h100;
  small.registers = 32768;
  CHECK(why(problem(CellId::kLstm, DType::kBFloat16, 64), small) ==
        "too few registers for a block");
}

TEST(more_shared_memory_keeps_a_larger_h_resident) {
  for (const CellId cell : {CellId::kRnnTanh, CellId::kLstm, CellId::kGru}) {
    for (const Pass pass : kPasses) {
      const int64_t on_4090 = largest(cell, DType::kBFloat16, pass, "RTX 4090");
      const int64_t on_a100 = largest(cell, DType::kBFloat16, pass, "A100");
      const int64_t on_h100 = largest(cell, DType::kBFloat16, pass, "H100");
      const std::string context = std::string(cell_info(cell).name) + ": " +
                                  std::to_string(on_4090) + ", " + std::to_string(on_a100) + ", " +
                                  std::to_string(on_h100);
      CHECK_IN(on_4090 >= 128 && on_4090 <= on_a100 && on_a100 <= on_h100, context);
      CHECK_IN(largest(cell, DType::kFloat32, pass, "H100") < on_h100, context);
      CHECK_IN(largest(cell, DType::kBFloat16, pass, "B200") == on_h100, context);
    }
  }
}

TEST(a_step_or_two_of_a_large_batch_do_not_pay_for_loading_the_weights) {
  PlanProblem p = problem(CellId::kLstm, DType::kFloat32, 128);
  const Device device = device_by_name("A100");
  CHECK(plan_cuda(p, device).strategy != Strategy::kStepwise);
  p.B = 100'000, p.T = 1;
  const CudaPlan plan = plan_cuda(p, device);
  CHECK(plan.strategy == Strategy::kStepwise);
  CHECK(plan.why.find("a resident kernel is expected to take") == 0);
}

TEST(among_the_shapes_that_fit_the_fastest_is_taken) {
  for_each_problem([&](const PlanProblem& p, const char* name) {
    const Device device = device_by_name(name);
    const CudaPlan plan = plan_cuda(p, device);
    if (plan.strategy != Strategy::kResident) return;
    const ShapeList list = shapes(p.pass, p.cell, plan.math);
    const double taken = resident_cycles(p, plan.math, list.at[plan.shape], device);
    for (int i = 0; i < list.size; ++i) {
      if (!fits(p.pass, p.cell, plan.math, list.at[i], p.H, device.shared_limit)) continue;
      CHECK_IN(taken <= resident_cycles(p, plan.math, list.at[i], device), label(p, name));
    }
  });
}

TEST(the_model_grows_with_what_it_counts) {
  const Device h100 = device_by_name("H100");
  for (const Pass pass : kPasses) {
    const auto ns = [&](DType dtype, int64_t H, int64_t B, bool tf32) {
      PlanProblem p = problem(CellId::kLstm, dtype, H, pass);
      p.B = B, p.tf32 = tf32;
      return plan_cuda(p, h100, "resident").step_ns;
    };
    CHECK(ns(DType::kBFloat16, 128, 64, true) > ns(DType::kBFloat16, 64, 64, true));
    CHECK(ns(DType::kFloat32, 64, 64, true) > ns(DType::kBFloat16, 64, 64, true));
    CHECK(ns(DType::kFloat32, 64, 64, false) > ns(DType::kFloat32, 64, 64, true));
    // more batch tiles than SMs come one after the other
    CHECK(ns(DType::kBFloat16, 64, 8 * 133, true) > ns(DType::kBFloat16, 64, 8 * 132, true));
    CHECK(ns(DType::kBFloat16, 64, 8 * 132, true) == ns(DType::kBFloat16, 64, 8, true));
  }
}

TEST(a_plan_can_be_forced) {
  const Device h100 = device_by_name("H100");
  const PlanProblem small = problem(CellId::kLstm, DType::kBFloat16, 64);
  const PlanProblem back = problem(CellId::kLstm, DType::kBFloat16, 64, Pass::kBackward);
  CHECK(plan_cuda(small, h100, "stepwise").strategy == Strategy::kStepwise);
  CHECK(plan_cuda(small, h100, "stepwise").why == "as RNNFAST_PLAN asks");
  CHECK(plan_cuda(small, h100, "resident").shape == 0);
  CHECK(plan_cuda(small, h100, "resident:shape=1").shape == 1);
  CHECK(plan_cuda(small, h100, "resident:forward=2,backward=1").shape == 2);
  CHECK(plan_cuda(back, h100, "resident:forward=2,backward=1").shape == 1);
  const PlanProblem wide = problem(CellId::kLstm, DType::kBFloat16, 192, Pass::kBackward);
  // free: too wide for a block
  CHECK(plan_cuda(wide, h100, "resident:forward=2").strategy != Strategy::kResident);
}

TEST(a_team_can_be_forced) {
  const Device h100 = device_by_name("H100");
  const PlanProblem p = problem(CellId::kLstm, DType::kBFloat16, 100);
  const CudaPlan cluster = plan_cuda(p, h100, "cluster:blocks=4");
  CHECK(cluster.strategy == Strategy::kCluster && cluster.blocks == 4 && cluster.teams == 8);
  const CudaPlan grid = plan_cuda(p, h100, "grid:blocks=5,teams=3,forward=1");
  CHECK(grid.strategy == Strategy::kGrid && grid.shape == 1);
  CHECK(grid.blocks == 5 && grid.teams == 3 && grid.tiles == 3);                 // 8 batch tiles
  CHECK(plan_cuda(p, h100, "grid:backward=1").strategy != Strategy::kStepwise);  // free
  // at most so many: each block has a unit
  CHECK(plan_cuda(p, h100, "grid:blocks=99").blocks == 13);
  CHECK(plan_cuda(problem(CellId::kLstm, DType::kBFloat16, 3), h100, "cluster:blocks=2").blocks ==
        1);
}

TEST(large_layers_go_to_teams) {
  const auto strategy = [](CellId cell, int64_t H, const char* device, Pass pass) {
    return plan_cuda(problem(cell, DType::kBFloat16, H, pass), device_by_name(device)).strategy;
  };
  for (const Pass pass : kPasses) {
    for (const CellId cell : {CellId::kLstm, CellId::kGru, CellId::kGruResetBefore}) {
      CHECK(strategy(cell, 1024, "H100", pass) == Strategy::kGrid);
      CHECK(strategy(cell, 1024, "T4", pass) == Strategy::kStepwise);
      const PlanProblem large = problem(cell, DType::kBFloat16, 2048, pass);
      CHECK_IN(plan_cuda(large, device_by_name("H100"), "grid").step_ns > 0, label(large, "H100"));
    }
    CHECK(strategy(CellId::kRnnTanh, 128, "H100", pass) == Strategy::kResident);
    CHECK(strategy(CellId::kLstm, 256, "H100", pass) == Strategy::kCluster);
    CHECK(strategy(CellId::kLstm, 1024, "A100", pass) == Strategy::kGrid);
    CHECK(strategy(CellId::kRnnTanh, 2048, "H100", pass) == Strategy::kGrid);
  }
}

TEST(what_cannot_be_forced_is_refused_with_the_reason) {
  const Device h100 = device_by_name("H100");
  const PlanProblem large = problem(CellId::kLstm, DType::kBFloat16, 150);
  const auto refused = [&](const PlanProblem& p, const char* forced) {
    return refusal([&] { plan_cuda(p, h100, forced); });
  };
  CHECK(refused(large, "resident:shape=0") ==
        "RNNFAST_PLAN asks for resident:shape=0: H = 150 in bf16 does not fit that");
  CHECK(refused(large, "resident:shape=9") ==
        "RNNFAST_PLAN asks for resident:shape=9: H = 150 in bf16 does not fit that");
  CHECK(refused(large, "grid:blocks=2") ==
        "RNNFAST_PLAN asks for grid:blocks=2: H = 150 in bf16 does not fit that");
  CHECK(refused(large, "grid:blocks=10,teams=14") ==
        "RNNFAST_PLAN asks for grid:blocks=10,teams=14: H = 150 in bf16 does not fit that");
  CHECK(refused(problem(CellId::kLstm, DType::kFloat64, 64), "resident") ==
        "RNNFAST_PLAN asks for resident: no resident kernel for float64");
  CHECK(refused(problem(CellId::kLstmProj, DType::kBFloat16, 64), "grid") ==
        "RNNFAST_PLAN asks for grid: no resident kernel for lstm_proj");
  CHECK(refusal([&] { plan_cuda(large, device_by_name("A100"), "cluster"); }) ==
        "RNNFAST_PLAN asks for cluster: clusters of blocks need compute capability 9.0");
  for (const char* forced :
       {"residents", "resident:", "resident:shape", "resident:shape=", "resident:shape=-1",
        "resident:shape=1x", "resident:width=1", "resident,shape=1", "resident:shape=1,",
        "nonsense", " ", "resident:blocks=2", "cluster:teams=2", "grid:blocks=0",
        "stepwise:shape=1"}) {
    CHECK_IN(
        refused(large, forced).find("RNNFAST_PLAN is stepwise, resident, cluster or grid") == 0,
        forced);
  }
}

TEST(an_unknown_device_is_refused) {
  CHECK(refusal([] { device_by_name("H1000"); }).find("A100, H100, RTX 4090, B200, T4") !=
        std::string::npos);
}
