// The ops of the CUDA kernels, for rnnfast/backends/cuda: they check the tensors and hand them
// to a strategy.
#include "cuda_scan.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "cuda/device/layout.h"
#include "cuda_device.h"

namespace rnnfast {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using OptionalTensors = c10::List<Optional>;

constexpr uintptr_t kAlignment = 16;

}  // namespace

at::Device device_of(const char* name, const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.device().type() == kDevice, name, " must be a ", kDevice,
                    " tensor, got one on ", tensor.device(), device_hint());
  return tensor.device();
}

Tensor checked(const char* name, const Tensor& tensor, at::ScalarType dtype,
               at::IntArrayRef shape) {
  device_of(name, tensor);
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  const Tensor dense = tensor.contiguous();
  const bool aligned = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % kAlignment == 0;
  return aligned ? dense : dense.clone();
}

Tensor checked(const char* name, const Optional& tensor, at::ScalarType dtype,
               at::IntArrayRef shape) {
  return tensor ? checked(name, *tensor, dtype, shape) : Tensor();
}

Tensor checked_out(const char* name, const Tensor& tensor, at::ScalarType dtype,
                   at::IntArrayRef shape) {
  const Tensor found = checked(name, tensor, dtype, shape);
  TORCH_CHECK_VALUE(found.data_ptr() == tensor.data_ptr(), name, " must be contiguous and aligned");
  return found;
}

namespace {

// Element `i` of a list that is empty where the cell has no such tensor.
Tensor element(const char* name, at::TensorList list, size_t i, bool wanted, at::ScalarType dtype,
               at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(wanted ? i < list.size() : list.empty(), name,
                    wanted ? " is missing" : " is not this cell's");
  return wanted ? checked(name, list[i], dtype, shape) : Tensor();
}

Tensor element(const char* name, const OptionalTensors& list, size_t i, at::ScalarType dtype,
               at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(i < list.size(), name, " is missing");
  return checked(name, list.get(i), dtype, shape);
}

}  // namespace

Sizes sizes_of(const std::string& name, int64_t T, int64_t B, const Tensor& w_hh) {
  const CellInfo& cell = find_cell(name);
  const at::ScalarType dtype = w_hh.scalar_type();
  TORCH_CHECK_VALUE(w_hh.dim() == 2, "w_hh must have 2 dimensions");
  const int64_t H = w_hh.size(0) / cell.gates, P = w_hh.size(1);
  TORCH_CHECK_VALUE(T > 0 && H > 0 && P > 0, "sizes must be positive");
  TORCH_CHECK_VALUE(cell.projected() || P == H, "w_hh must be square for each gate");
  TORCH_CHECK_TYPE(
      dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kFloat || dtype == at::kDouble,
      "no kernel for ", dtype);
  return {&cell, dtype, T, B, H, P};
}

namespace {

void check_directions(size_t directions, const c10::List<bool>& reverse) {
  TORCH_CHECK_VALUE(directions == reverse.size() && (directions == 1 || directions == 2),
                    "expected one or two directions, got ", directions, " and ", reverse.size());
}

template <class Scan>
void run_kernel(const Scan& scan, const Kernel& kernel, cuda::Math math) {
  if (kernel.strategy == "resident") return run_resident(scan, math, kernel.number(0));
  const bool grid = kernel.strategy == "grid";
  run_team(scan, {grid ? cuda::TeamKind::kGrid : cuda::TeamKind::kCluster, math, kernel.number(0),
                  kernel.number(1), kernel.number(2), kernel.number(3)});
}

template <class Scan>
void run_any(const Scan& scan, const Kernel& kernel) {
  const bool strict = kernel.math == "fp32";
  std::optional<at::NoTF32Guard> no_tf32;
  if (strict) no_tf32.emplace();
  const std::string& strategy = kernel.strategy;
  if (strategy == "stepwise") return run_stepwise(scan);
  TORCH_CHECK_VALUE(strategy == "resident" || strategy == "cluster" || strategy == "grid",
                    "no strategy is called '", strategy, "'");
  const size_t numbers = strategy == "resident" ? 1 : 4;
  TORCH_CHECK_VALUE(kernel.choice.size() == numbers, strategy, " takes ", numbers, " numbers, got ",
                    kernel.choice.size());
  const at::ScalarType dtype = scan.sizes.dtype;
  using cuda::Math;
  const auto choose = [&](Math chosen, const char* name, at::ScalarType of) {
    if (kernel.math == name && dtype == of) run_kernel(scan, kernel, chosen);
    return kernel.math == name && dtype == of;
  };
  const bool found =
      choose(Math::kBf16, "bf16", at::kBFloat16) || choose(Math::kF16, "fp16", at::kHalf) ||
      choose(Math::kTf32, "tf32", at::kFloat) || choose(Math::kFp32, "fp32", at::kFloat);
  TORCH_CHECK_VALUE(found, "no resident kernel computes ", dtype, " as '", kernel.math, "'");
}

}  // namespace

void run(const ForwardScan& scan, const Kernel& kernel) { run_any(scan, kernel); }
void run(const BackwardScan& scan, const Kernel& kernel) { run_any(scan, kernel); }

namespace {

using ForwardResult = std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors>;

// Overwrites `gates` [T, B, H, S] of each direction with what backward needs, if training.
// (y, last h, last c, every c, every m), the last three for cells that have them; every c if
// every_c, every m if training.
ForwardResult scan_forward(const std::string& name, const std::string& strategy,
                           const std::string& math, at::IntArrayRef choice, at::TensorList gates,
                           at::TensorList w_hh, at::TensorList w_hr, at::TensorList h0,
                           at::TensorList c0, const Optional& lengths, const Optional& resets,
                           const c10::List<bool>& reverse, bool training, bool every_c) {
  check_directions(gates.size(), reverse);
  TORCH_CHECK_VALUE(gates[0].dim() == 4 && !w_hh.empty(),
                    "gates must have 4 dimensions, and w_hh is needed");
  const OnDevice guard(device_of("gates", gates[0]));
  ForwardScan scan{
      sizes_of(name, gates[0].size(0), gates[0].size(1), w_hh[0]), training, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  scan.lengths = checked("lengths", lengths, at::kLong, {B});
  scan.resets = checked("resets", resets, at::kBool, {T, B});
  const auto options = w_hh[0].options();
  ForwardResult result;
  for (size_t i = 0; i < gates.size(); ++i) {
    ForwardTensors d;
    d.gates = checked_out("gates", gates[i], dtype, {T, B, H, cuda::slots_of(cell->id)});
    d.w_hh = element("w_hh", w_hh, i, true, dtype, {cell->gates * H, P});
    d.w_hr = element("w_hr", w_hr, i, cell->projected(), dtype, {P, H});
    d.h0 = element("h0", h0, i, true, dtype, {B, P});
    d.c0 = element("c0", c0, i, has_c, dtype, {B, H});
    d.y = at::empty({T, B, P}, options), d.h_last = at::empty({B, P}, options);
    if (has_c) d.c_last = at::empty({B, H}, options);
    if (has_c && every_c) d.c = at::empty({T, B, H}, options.dtype(wide(dtype)));
    if (cell->projected() && training) d.every_m = at::empty({T, B, H}, options);
    d.reverse = reverse.get(i);
    std::get<0>(result).push_back(d.y), std::get<1>(result).push_back(d.h_last);
    if (d.c_last.defined()) std::get<2>(result).push_back(d.c_last);
    if (d.c.defined()) std::get<3>(result).push_back(d.c);
    if (d.every_m.defined()) std::get<4>(result).push_back(d.every_m);
    scan.directions.push_back(std::move(d));
  }
  if (B > 0) run(scan, {strategy, math, choice.vec()});
  return result;
}

using BackwardResult = std::tuple<Tensors, Tensors, Tensors, Tensors>;

// (D [T, B, H, S] times *scale, dh0, dc0, projected cells: the gradient of each h times *scale).
BackwardResult scan_backward(const std::string& name, const std::string& strategy,
                             const std::string& math, at::IntArrayRef choice, at::TensorList saved,
                             at::TensorList y, at::TensorList c, at::TensorList w_hh,
                             at::TensorList w_hr, at::TensorList h0, at::TensorList c0,
                             const Optional& lengths, const Optional& resets,
                             const c10::List<bool>& reverse, const OptionalTensors& dy,
                             const OptionalTensors& dc, at::TensorList dh_last,
                             at::TensorList dc_last, const Optional& scale, double clip) {
  check_directions(y.size(), reverse);
  TORCH_CHECK_VALUE(y[0].dim() == 3 && !w_hh.empty(),
                    "y must have 3 dimensions, and w_hh is needed");
  const OnDevice guard(device_of("y", y[0]));
  BackwardScan scan{sizes_of(name, y[0].size(0), y[0].size(1), w_hh[0]), clip, {}, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  scan.lengths = checked("lengths", lengths, at::kLong, {B});
  scan.resets = checked("resets", resets, at::kBool, {T, B});
  scan.scale = checked("scale", scale, at::kFloat, {1});
  const auto options = w_hh[0].options();
  const int64_t S = cuda::slots_of(cell->id);
  BackwardResult result;
  for (size_t i = 0; i < y.size(); ++i) {
    BackwardTensors d;
    d.saved = element("saved", saved, i, !cell->saves_output, dtype, {T, B, H, S});
    d.y = element("y", y, i, true, dtype, {T, B, P});
    d.c = element("c", c, i, has_c, wide(dtype), {T, B, H});
    d.w_hh = element("w_hh", w_hh, i, true, dtype, {cell->gates * H, P});
    d.w_hr = element("w_hr", w_hr, i, cell->projected(), dtype, {P, H});
    d.h0 = element("h0", h0, i, true, dtype, {B, P});
    d.c0 = element("c0", c0, i, has_c, dtype, {B, H});
    d.dy = element("dy", dy, i, dtype, {T, B, P});
    d.dc = element("dc", dc, i, dtype, {T, B, H});
    d.dh_last = element("dh_last", dh_last, i, true, dtype, {B, P});
    d.dc_last = element("dc_last", dc_last, i, has_c, dtype, {B, H});
    d.dgates = at::empty({T, B, H, S}, options), d.dh0 = at::empty({B, P}, options);
    if (has_c) d.dc0 = at::empty({B, H}, options);
    if (cell->projected()) d.every_dh = at::empty({T, B, P}, options);
    d.reverse = reverse.get(i);
    std::get<0>(result).push_back(d.dgates), std::get<1>(result).push_back(d.dh0);
    if (d.dc0.defined()) std::get<2>(result).push_back(d.dc0);
    if (d.every_dh.defined()) std::get<3>(result).push_back(d.every_dh);
    scan.directions.push_back(std::move(d));
  }
  if (B > 0) run(scan, {strategy, math, choice.vec()});
  return result;
}

}  // namespace
}  // namespace rnnfast

TORCH_LIBRARY_FRAGMENT(RNNFAST_LIBRARY, m) {
  m.def(
      "cuda_forward(str cell, str strategy, str math, int[] choice, Tensor(a!)[] gates, Tensor[] "
      "w_hh, Tensor[] w_hr, "
      "Tensor[] h0, Tensor[] c0, Tensor? lengths, Tensor? resets, bool[] reverse, bool training, "
      "bool every_c) "
      "-> (Tensor[] y, Tensor[] h_last, Tensor[] c_last, Tensor[] c, Tensor[] m)");
  m.def(
      "cuda_backward(str cell, str strategy, str math, int[] choice, Tensor[] saved, Tensor[] y, "
      "Tensor[] c, "
      "Tensor[] w_hh, Tensor[] w_hr, Tensor[] h0, Tensor[] c0, Tensor? lengths, Tensor? resets, "
      "bool[] reverse, "
      "Tensor?[] dy, Tensor?[] dc, Tensor[] dh_last, Tensor[] dc_last, Tensor? scale, float clip) "
      "-> (Tensor[] dgates, Tensor[] dh0, Tensor[] dc0, Tensor[] dh)");
}

TORCH_LIBRARY_IMPL(RNNFAST_LIBRARY, RNNFAST_DISPATCH_KEY, m) {
  m.impl("cuda_forward", &rnnfast::scan_forward);
  m.impl("cuda_backward", &rnnfast::scan_backward);
}

#if !defined(RNNFAST_SIMT)
// On CPU tensors the same functions refuse, naming the tensor and why.
TORCH_LIBRARY_IMPL(rnnfast, CPU, m) {
  m.impl("cuda_forward", &rnnfast::scan_forward);
  m.impl("cuda_backward", &rnnfast::scan_backward);
}
#endif
