#include "ops_cuda/program.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/device/layout.h"
#include "cuda/plan/plan.h"
#include "ops_cuda/device.h"
#include "ops_cuda/scan.h"
#include "scan/dtypes.h"

namespace rnnfast::ops {
namespace {

constexpr Place kPlace{kDevice, "cuda", [](const Tensor& tensor) { return is_ours(tensor); },
                       /*looks=*/false};

// --- the input's part of the gates ---------------------------------------------------------------

Tensor added(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1); }

// [G·H, …] → [H·S, …], slots without a gate 0.
Tensor unit_major(const Scan& scan, const Tensor& matrix) {
  const int64_t G = scan.cell.gates, H = scan.H, S = cuda::slots_of(scan.cell.id);
  const int64_t width = matrix.dim() == 2 ? matrix.size(1) : 1;
  const Tensor by_gate = torch::stable::reshape(matrix, {G, H, width});
  Tensor slots = zeros_like(matrix, {H, S, width}, matrix.scalar_type());
  Tensor gates = torch::stable::narrow(slots, 1, 0, G);
  torch::stable::copy_(gates, torch::stable::transpose(by_gate, 0, 1));
  const Shape rows{H * S};
  return torch::stable::reshape(slots, matrix.dim() == 2 ? Shape{H * S, width} : rows);
}

// Gate `own` of a [G·H] bias, [H].
Tensor gate_of(const Scan& scan, const Tensor& bias, int64_t gate) {
  Tensor all = bias;
  return torch::stable::narrow(all, 0, gate * scan.H, scan.H);
}

// [H·S]: what the biases add to each slot; the recurrent one of a product that enters by itself has
// the slot behind the gates.
Optional slot_bias(const Scan& scan) {
  if (!scan.weights.b_hh) return std::nullopt;
  const ScalarType wide = scan.wide();
  const int64_t G = scan.cell.gates, S = cuda::slots_of(scan.cell.id), own = scan.cell.own_gate;
  Tensor total = copied(*scan.weights.b_hh, wide);
  if (own >= 0) STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_zero_(gate_of(scan, total, own).get()));
  if (scan.weights.b_ih) total = added(total, plain(*scan.weights.b_ih, wide));
  const Tensor bias = unit_major(scan, cast(total, scan.storage));
  if (own < 0) return bias;
  Tensor by_unit = torch::stable::reshape(bias, {scan.H, S});
  Tensor behind = torch::stable::narrow(by_unit, 1, G, 1);
  torch::stable::copy_(behind,
                       torch::stable::reshape(gate_of(scan, *scan.weights.b_hh, own), {scan.H, 1}));
  return bias;
}

// x · Wᵀ + b of x [N, I].
void multiply(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& out) {
  const Tensor across = torch::stable::transpose(weight, 0, 1);
  STABLE_TORCH_ERROR_CODE_CHECK(bias
                                    ? addmm_out(out.get(), bias->get(), x.get(), across.get(), 1, 1)
                                    : mm_out(out.get(), x.get(), across.get()));
}

// A one-hot row times Wᵀ is a column of W. A token out of range, as padding may hold, is taken for
// the nearest that is in it.
Tensor looked_up(const Scan& scan, const Tensor& weight) {
  const Tensor first = zeros_like(scan.input, {}, ScalarType::Long);
  const Tensor last = torch::stable::full({}, double(scan.I - 1), ScalarType::Long);
  std::array<StableIValue, 3> stack{torch::stable::detail::from(scan.input),
                                    torch::stable::detail::from(Optional(first)),
                                    torch::stable::detail::from(Optional(last))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::clamp", "Tensor", stack.data(), TORCH_ABI_VERSION));
  const Tensor tokens = torch::stable::detail::to<Tensor>(stack[0]);
  const Tensor rows = torch::stable::contiguous(torch::stable::transpose(weight, 0, 1));
  return torch::stable::index_select(rows, 0, torch::stable::reshape(tokens, {scan.T * scan.B}));
}

}  // namespace

Tensor slots_of_input(const Scan& scan, bool strict) {
  const NoTf32 strictly(strict);
  const int64_t N = scan.T * scan.B, G = scan.cell.gates, H = scan.H;
  const int64_t S = cuda::slots_of(scan.cell.id);
  const Shape shape{scan.T, scan.B, H, S};
  const Optional bias = slot_bias(scan);
  if (scan.kind == "gates") {
    Tensor slots = zeros_like(scan.input, shape, scan.storage);
    Tensor gates = torch::stable::narrow(slots, 3, 0, G);
    const Tensor given = torch::stable::reshape(scan.input, {scan.T, scan.B, G, H});
    torch::stable::copy_(gates, torch::stable::transpose(given, 2, 3));
    return bias ? added(slots, torch::stable::reshape(*bias, {H, S})) : slots;
  }
  const Tensor weight = unit_major(scan, plain(*scan.weights.w_ih, scan.storage));
  if (scan.kind == "tokens") {
    const Tensor rows = looked_up(scan, weight);
    return torch::stable::reshape(bias ? added(rows, *bias) : rows, shape);
  }
  const Tensor x = torch::stable::reshape(plain(scan.input, scan.storage), {N, scan.I});
  const Tensor rows = empty_like(x, {N, H * S}, scan.storage);
  if (N > 0) multiply(x, weight, bias, rows);
  return torch::stable::reshape(rows, shape);
}

namespace {

// --- the plan ------------------------------------------------------------------------------------

// As torch's RNNs do without being told otherwise; NVIDIA_TF32_OVERRIDE=0 forbids it to all of
// CUDA's libraries, and here.
bool tf32_allowed() {
  const char* text = std::getenv("NVIDIA_TF32_OVERRIDE");
  return !text || std::string(text) != "0";
}

cuda::Device device_of(int index) {
  const auto [sm, count, shared, registers, clock] = device_numbers(index);
  return {int(sm), int(count), shared, registers, clock};
}

Kernel planned(const cuda::PlanProblem& problem, int index, const std::string& forced) {
  const cuda::Room room = [&](const cuda::TeamQuery& q) {
    const auto strategy =
        q.kind == cuda::TeamKind::kGrid ? cuda::Strategy::kGrid : cuda::Strategy::kCluster;
    return cuda_room(std::string(cell_info(problem.cell).name), std::string(name_of(strategy)),
                     std::string(cuda::name_of(q.math)), {q.shape, q.blocks, q.teams, q.tiles},
                     false, problem.H, index);
  };
  const cuda::CudaPlan plan = cuda::plan_cuda(problem, device_of(index), forced, room);
  Kernel kernel{std::string(name_of(plan.strategy)), std::string(cuda::name_of(plan.math)), {}};
  if (plan.strategy != cuda::Strategy::kStepwise) kernel.choice = {plan.shape};
  if (plan.strategy == cuda::Strategy::kCluster || plan.strategy == cuda::Strategy::kGrid)
    kernel.choice.insert(kernel.choice.end(), {plan.blocks, plan.teams, plan.tiles});
  return kernel;
}

// Of a scan's sizes; made once for each.
Kernel kernel_for(const Scan& scan, int index) {
  using Key =
      std::tuple<int, CellId, ScalarType, bool, std::string, int64_t, int64_t, int64_t, int64_t>;
  const char* forced = std::getenv("RNNFAST_PLAN");
  const bool tf32 = tf32_allowed();
  const Key key{index,  scan.cell.id, scan.storage, tf32,  forced ? forced : "",
                scan.T, scan.B,       scan.H,       scan.P};
  static std::mutex mutex;
  static auto& known = *new std::map<Key, Kernel>;
  constexpr size_t kMost = 4096;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  if (known.size() >= kMost) known.clear();
  cuda::PlanProblem problem;
  problem.cell = scan.cell.id, problem.dtype = known_dtype(scan.storage).value();
  problem.tf32 = tf32;
  problem.T = scan.T, problem.B = scan.B, problem.H = scan.H, problem.P = scan.P;
  return known[key] = planned(problem, index, forced ? forced : "");
}

// --- the scan ------------------------------------------------------------------------------------

Tensors listed(const Optional& tensor) { return tensor ? Tensors{*tensor} : Tensors{}; }

}  // namespace

Outputs cuda_scan(std::string cell, std::string kind, Tensor input, std::vector<Tensor> states,
                  std::vector<Tensor> weights, Optional lengths, Optional resets, bool reverse,
                  bool all_states, bool training, int64_t checkpoint_every, double,
                  std::string backend) {
  const WithoutGrad without_grad;
  const Scan scan = checked(kPlace, cell, kind, input, states, weights, lengths, resets, reverse,
                            all_states, training, checkpoint_every, backend);
  const int index = input.get_device_index();
  const OnDevice guard(index);
  const Kernel kernel = scan.B > 0 ? kernel_for(scan, index) : Kernel{"stepwise", "fp32", {}};
  const Tensor gates = slots_of_input(scan, kernel.math == "fp32");
  auto [y, h_last, c_last, c, m] =
      cuda_forward(cell, kernel.strategy, kernel.math, kernel.choice, {gates}, {*scan.weights.w_hh},
                   listed(scan.weights.w_hr), {scan.h0}, listed(scan.c0), scan.lengths, scan.resets,
                   {reverse}, scan.saves, scan.saves || all_states);
  Tensors final{h_last[0]}, trace, saved;
  if (!c_last.empty()) final.push_back(c_last[0]);
  if (all_states && !c.empty()) trace.push_back(cast(c[0], scan.storage));
  // In the order in which KernelBackend.saved_names has them.
  if (scan.saves && !scan.cell.saves_output) saved.push_back(gates);
  if (scan.saves && !m.empty()) saved.push_back(m[0]);
  const bool is_output = all_states && is_wide(scan.storage);
  if (scan.saves && !c.empty() && !is_output) saved.push_back(c[0]);
  return {y[0], final, trace, saved};
}

}  // namespace rnnfast::ops

#if !defined(RNNFAST_SIMT)
// For librnnfast.so (ops/library.cpp).
extern "C" __attribute__((visibility("default"))) void rnnfast_cuda_scan(StableIValue* stack,
                                                                         uint64_t inputs,
                                                                         uint64_t outputs) {
  TORCH_BOX (&rnnfast::ops::cuda_scan)(stack, inputs, outputs);
}
#endif
