#include "cuda/plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

namespace rnnfast::cuda {
namespace {

// What follows is the makers' documentation and arithmetic, not measured. The choices need its
// order of magnitude.
constexpr double kSharedBytesPerClock = 128;
constexpr double kSpecialPerClock = 16;  // of an SM
constexpr double kStepLatency =
    250;  // cycles: operands' way through shared memory, first mma, barrier
constexpr double kGlobalBytesPerClock = 32;     // of an SM, from L2
constexpr double kLaunchNs = 4000;              // of a kernel, until it does something
constexpr double kQueuedLaunchNs = 2500;        // of one after the other
constexpr double kProductEfficiency = 0.3;      // of a small product by cuBLAS
constexpr double kPointwiseBytesPerClock = 16;  // of an SM

constexpr int kLeastSm = 80;         // mma.m16n8k16 and cp.async
constexpr int kMostRegisters = 255;  // of a thread

// Cycles of an SM for one mma of 16x8x16 16-bit values, or of 16x8x8 in tf32.
double mma_cycles(int sm) {
  if (sm == 80) return 2;
  if (sm == 90) return 1.6;  // mma.sync does not reach the rate of wgmma
  if (sm == 100 || sm == 103) return 1.6;
  return 8;  // desktop parts, with fp32 accumulators
}

// FFMA of an SM in a cycle.
double ffma_per_clock(int sm) { return sm == 80 || sm < 80 ? 64 : 128; }

// Instructions of the special function unit for a unit of a step (real.h).
double specials_of(const PlanProblem& p) {
  constexpr double kActivation = 2;  // an exponential and a reciprocal
  const CellInfo& cell = cell_info(p.cell);
  if (p.pass == Pass::kForward) {
    return kActivation * (cell.states == 2 ? 5 : p.cell == CellId::kRnnRelu ? 0 : cell.gates);
  }
  return cell.states == 2 ? kActivation : 0;
}

int64_t operand_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

Math math_of(const PlanProblem& p) {
  switch (p.dtype) {
    case DType::kBFloat16:
      return Math::kBf16;
    case DType::kFloat16:
      return Math::kF16;
    default:
      return p.tf32 ? Math::kTf32 : Math::kFp32;
  }
}

int64_t blocks_of(const PlanProblem& p) {
  return detail::ceil_div(std::max<int64_t>(p.B, 1), kColumns) * p.directions;
}

double weight_bytes(const PlanProblem& p) {
  return double(cell_info(p.cell).gates * p.H * p.P) * double(operand_size(p.dtype));
}

double resident_ns(const PlanProblem& p, Math math, Shape shape, const Device& device) {
  const double waves = std::ceil(double(blocks_of(p)) / device.sm_count);  // a block fills an SM
  const double load = weight_bytes(p) / kGlobalBytesPerClock;
  const double steps = double(std::max<int64_t>(p.T, 1));
  const double cycles = waves * (resident_cycles(p, math, shape, device) + load / steps);
  return cycles / device.clock_ghz + kLaunchNs / steps;
}

double stepwise_ns(const PlanProblem& p, const Device& device) {
  const CellInfo& cell = cell_info(p.cell);
  const double B = double(std::max<int64_t>(p.B, 1));
  const int launches = cell.phases == 2 || cell.projected ? 4 : 2;
  // fp64 and strict fp32 run on the ordinary units, the rest on tensor cores
  const bool tensor = p.dtype != DType::kFloat64 && (p.dtype != DType::kFloat32 || p.tf32);
  const double depth = operand_size(p.dtype) == 2 ? 16 : 8;
  const double multiply_adds =
      tensor ? 16 * 8 * depth / mma_cycles(device.sm) : ffma_per_clock(device.sm);
  const double product = B * weight_bytes(p) / double(operand_size(p.dtype)) /
                         (multiply_adds * kProductEfficiency * device.sm_count);
  const double weights = weight_bytes(p) / (kGlobalBytesPerClock * device.sm_count);
  const double values = B * double(p.H) * (3 * cell.gates + 4);
  const double pointwise =
      values * double(operand_size(p.dtype)) / (kPointwiseBytesPerClock * device.sm_count);
  const double work = (std::max(product, weights) + pointwise) / device.clock_ghz;
  return p.directions * std::max(work, launches * kQueuedLaunchNs);
}

std::string microseconds(double ns) {
  const long tenths = std::lround(ns / 100);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " us";
}

std::string describe(const PlanProblem& p, const CudaPlan& plan) {
  const std::string expected = "the model expects " + microseconds(plan.step_ns) + " a step";
  if (!plan.resident) return "stepwise (" + plan.why + "); " + expected;
  const Shape shape = shapes(p.pass, p.cell, plan.math).at[plan.shape];
  const int64_t bytes = shared_bytes(p.pass, p.cell, plan.math, shape, p.H);
  return "resident: " + std::string(name_of(plan.math)) + ", shape " + std::to_string(plan.shape) +
         " (" + std::to_string(shape.groups) + " groups a warp, " +
         std::to_string(shape.held_slabs) + " slabs in registers), " +
         std::to_string(blocks_of(p)) + " blocks of " + std::to_string(kThreads) + " threads, " +
         std::to_string(bytes) + " bytes of shared memory; " + expected;
}

CudaPlan stepwise(const PlanProblem& p, const Device& device, const std::string& why) {
  CudaPlan plan;
  plan.math = math_of(p);
  plan.step_ns = stepwise_ns(p, device);
  plan.why = why;
  plan.text = describe(p, plan);
  return plan;
}

// The fastest resident shape, or the one that is asked for; only where there is one.
CudaPlan best_resident(const PlanProblem& p, const Device& device, int asked) {
  CudaPlan best;
  best.resident = true;
  best.math = math_of(p);
  best.shape = -1;
  const ShapeList list = shapes(p.pass, p.cell, best.math);
  for (int i = 0; i < list.size; ++i) {
    if (asked >= 0 && i != asked) continue;
    if (!fits(p.pass, p.cell, best.math, list.at[i], p.H, device.shared_limit)) continue;
    const double ns = resident_ns(p, best.math, list.at[i], device);
    if (best.shape < 0 || ns < best.step_ns) best.shape = i, best.step_ns = ns;
  }
  if (best.shape < 0) {
    throw std::invalid_argument("RNNFAST_PLAN asks for shape " + std::to_string(asked) +
                                ", which H = " + std::to_string(p.H) + " does not fit");
  }
  best.text = describe(p, best);
  return best;
}

// A number that is all of `text`, or -1.
int whole_number(std::string_view text) {
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? number : -1;
}

constexpr int kAnyShape = -1, kFree = -2;

// The shape that "resident:key=N,key=N" asks of a pass by the key "shape" or by its own; kFree
// where it asks for the other pass only; kAnyShape for "resident".
int forced_shape(std::string_view forced, Pass pass) {
  constexpr std::string_view kResident = "resident";
  const std::string_view own = pass == Pass::kForward ? "forward" : "backward";
  int shape = forced == kResident ? kAnyShape : kFree;
  bool sound = forced.substr(0, kResident.size()) == kResident;
  std::string_view rest = sound ? forced.substr(kResident.size()) : "";
  for (char before = ':'; sound && !rest.empty(); before = ',') {
    const std::string_view item = rest.substr(1, rest.find(',', 1) - 1);
    const size_t equals = std::min(item.find('='), item.size());
    const std::string_view key = item.substr(0, equals);
    const int number = whole_number(item.substr(std::min(equals + 1, item.size())));
    sound = rest[0] == before && number >= 0 &&
            (key == "shape" || key == "forward" || key == "backward");
    if (key == "shape" || key == own) shape = number;
    rest.remove_prefix(1 + item.size());
  }
  if (!sound) {
    throw std::invalid_argument(
        "RNNFAST_PLAN is resident, stepwise, resident:shape=N or resident:forward=N,backward=N, "
        "not " +
        std::string(forced));
  }
  return shape;
}

}  // namespace

Device device_by_name(std::string_view name) {
  if (name == "A100") return {80, 108, 163 * 1024, 65536, 1.41};
  if (name == "H100") return {90, 132, 227 * 1024, 65536, 1.83};
  if (name == "RTX 4090") return {89, 128, 99 * 1024, 65536, 2.52};
  if (name == "B200") return {100, 148, 227 * 1024, 65536, 1.85};
  if (name == "T4") return {75, 40, 64 * 1024, 65536, 1.59};
  throw std::invalid_argument("no device is called '" + std::string(name) +
                              "'; there are: A100, H100, RTX 4090, B200, T4");
}

std::string_view name_of(Math math) {
  switch (math) {
    case Math::kBf16:
      return "bf16";
    case Math::kF16:
      return "fp16";
    case Math::kTf32:
      return "tf32";
    case Math::kFp32:
      return "fp32";
  }
  throw std::invalid_argument("not a Math");
}

double resident_cycles(const PlanProblem& p, Math math, Shape shape, const Device& device) {
  constexpr int kSchedulers = 4;  // of an SM; warps in excess of a multiple wait
  const Group group = group_of(p.pass, p.cell);
  const int64_t groups = groups_of(p.pass, p.cell, p.H);
  const int64_t slabs = slabs_of(p.pass, p.cell, math, p.H);
  const double tiles = double(detail::ceil_div(groups, kSchedulers) * kSchedulers * group.tiles);
  double multiply = tiles * double(slabs) * 2 * mma_cycles(device.sm);
  if (math == Math::kFp32) {
    multiply =
        tiles * 16 * double(slabs * slab_values(math)) * kColumns / ffma_per_clock(device.sm);
  }
  const double spilled = double(spilled_slabs(shape, slabs) * groups * group.tiles * kSlabShared);
  const double operands = double(kWarps * kColumns * slabs * kSlabBytes);
  const double units = double(groups * group.units);
  const double special = units * kColumns * specials_of(p) / kSpecialPerClock;
  const int phases = cell_info(p.cell).phases;
  return std::max(multiply, (spilled + operands) / kSharedBytesPerClock) + special +
         phases * kStepLatency;
}

std::string why_not_resident(const PlanProblem& p, const Device& device) {
  if (p.dtype == DType::kFloat64) return "no resident kernel for float64";
  const Math math = math_of(p);
  if (shapes(p.pass, p.cell, math).size == 0) {
    return "no resident kernel for " + std::string(cell_info(p.cell).name);
  }
  if (device.sm < kLeastSm) return "resident kernels need compute capability 8.0";
  if (device.registers < int64_t(kThreads) * kMostRegisters) return "too few registers for a block";
  if (first_fit(p.pass, p.cell, math, p.H, device.shared_limit) < 0) {
    return "H = " + std::to_string(p.H) + " in " + std::string(name_of(math)) +
           " does not fit one block";
  }
  return "";
}

CudaPlan plan_cuda(const PlanProblem& p, const Device& device, std::string_view forced) {
  const std::string why_not = why_not_resident(p, device);
  if (forced == "stepwise") return stepwise(p, device, "as RNNFAST_PLAN asks");
  const int shape = forced.empty() ? kFree : forced_shape(forced, p.pass);
  if (shape != kFree) {
    if (!why_not.empty()) {
      throw std::invalid_argument("RNNFAST_PLAN asks for a resident kernel: " + why_not);
    }
    return best_resident(p, device, shape);
  }
  if (!why_not.empty()) return stepwise(p, device, why_not);
  CudaPlan resident = best_resident(p, device, kAnyShape);
  if (resident.step_ns <= stepwise_ns(p, device)) return resident;
  return stepwise(p, device,
                  "a resident kernel is expected to take " + microseconds(resident.step_ns));
}

}  // namespace rnnfast::cuda
