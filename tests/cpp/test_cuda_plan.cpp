// Which kernel the plan takes, for devices that need not be here.
#include <array>
#include <cmath>
#include <stdexcept>

#include "check.h"
#include "cuda/plan.h"

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

// The largest H that stays resident.
int64_t largest(CellId cell, DType dtype, Pass pass, const char* device) {
  int64_t found = 0;
  for (int64_t H = 1; H <= 600; ++H) {
    if (plan_cuda(problem(cell, dtype, H, pass), device_by_name(device)).resident) found = H;
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

}  // namespace

TEST(a_plan_fits_the_device_and_the_compiled_shapes) {
  int resident = 0;
  for_each_problem([&](const PlanProblem& p, const char* name) {
    const Device device = device_by_name(name);
    const CudaPlan plan = plan_cuda(p, device);
    CHECK_IN(std::isfinite(plan.step_ns) && plan.step_ns > 0, label(p, name));
    CHECK_IN(!plan.text.empty(), label(p, name));
    if (!plan.resident) return;
    ++resident;
    const ShapeList list = shapes(p.pass, p.cell, plan.math);
    CHECK_IN(plan.shape >= 0 && plan.shape < list.size, label(p, name));
    CHECK_IN(fits(p.pass, p.cell, plan.math, list.at[plan.shape], p.H, device.shared_limit),
             label(p, name));
  });
  CHECK(resident > 100);
}

TEST(what_has_no_resident_kernel_is_stepwise_and_says_why) {
  const Device h100 = device_by_name("H100"), t4 = device_by_name("T4");
  const auto why = [](const PlanProblem& p, const Device& device) {
    const CudaPlan plan = plan_cuda(p, device);
    return plan.resident ? "resident" : plan.why;
  };
  CHECK(why(problem(CellId::kLstm, DType::kFloat64, 64), h100) == "no resident kernel for float64");
  CHECK(why(problem(CellId::kLstmProj, DType::kBFloat16, 64), h100) ==
        "no resident kernel for lstm_proj");
  CHECK(why(problem(CellId::kLstm, DType::kFloat16, 64), t4) ==
        "resident kernels need compute capability 8.0");
  CHECK(why(problem(CellId::kLstm, DType::kBFloat16, 512), h100) ==
        "H = 512 in bf16 does not fit one block");
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
  CHECK(plan_cuda(p, device).resident);
  p.B = 100'000, p.T = 1;
  const CudaPlan plan = plan_cuda(p, device);
  CHECK(!plan.resident);
  CHECK(plan.why.find("a resident kernel is expected to take") == 0);
}

TEST(among_the_shapes_that_fit_the_fastest_is_taken) {
  for_each_problem([&](const PlanProblem& p, const char* name) {
    const Device device = device_by_name(name);
    const CudaPlan plan = plan_cuda(p, device);
    if (!plan.resident) return;
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
  CHECK(!plan_cuda(small, h100, "stepwise").resident);
  CHECK(plan_cuda(small, h100, "stepwise").why == "as RNNFAST_PLAN asks");
  CHECK(plan_cuda(small, h100, "resident").shape == 0);
  CHECK(plan_cuda(small, h100, "resident:shape=1").shape == 1);
  CHECK(plan_cuda(small, h100, "resident:forward=2,backward=1").shape == 2);
  CHECK(plan_cuda(back, h100, "resident:forward=2,backward=1").shape == 1);
  const PlanProblem wide = problem(CellId::kLstm, DType::kBFloat16, 192, Pass::kBackward);
  CHECK(!plan_cuda(wide, h100, "resident:forward=2").resident);  // free: too wide for a block
}

TEST(what_cannot_be_forced_is_refused_with_the_reason) {
  const Device h100 = device_by_name("H100");
  const PlanProblem large = problem(CellId::kLstm, DType::kBFloat16, 150);
  const auto refused = [&](const PlanProblem& p, const char* forced) {
    return refusal([&] { plan_cuda(p, h100, forced); });
  };
  CHECK(refused(large, "resident:shape=0") ==
        "RNNFAST_PLAN asks for shape 0, which H = 150 does not fit");
  CHECK(refused(large, "resident:shape=9") ==
        "RNNFAST_PLAN asks for shape 9, which H = 150 does not fit");
  CHECK(refused(problem(CellId::kLstm, DType::kFloat64, 64), "resident") ==
        "RNNFAST_PLAN asks for a resident kernel: no resident kernel for float64");
  for (const char* forced : {"residents", "resident:", "resident:shape", "resident:shape=",
                             "resident:shape=-1", "resident:shape=1x", "resident:width=1",
                             "resident,shape=1", "resident:shape=1,", "nonsense", " "}) {
    CHECK_IN(refused(large, forced).find("RNNFAST_PLAN is resident, stepwise") == 0, forced);
  }
}

TEST(an_unknown_device_is_refused) {
  CHECK(refusal([] { device_by_name("H1000"); }).find("A100, H100, RTX 4090, B200, T4") !=
        std::string::npos);
}
