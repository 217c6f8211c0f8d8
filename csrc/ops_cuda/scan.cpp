// The ops of the CUDA kernels, for rnnfast/backends/cuda: they check the tensors and hand them
// to a strategy.
#include "ops_cuda/scan.h"

#include "cuda/device/layout.h"
#include "ops_cuda/device.h"

namespace rnnfast::ops {

int device_of(const char* name, const Tensor& tensor) {
  require(is_ours(tensor), name, " must be a ", kDevice, " tensor, got one on ",
          tensor.is_cpu() ? "cpu" : "another device", device_hint());
  return tensor.get_device_index();
}

namespace {

constexpr uintptr_t kAlignment = 16;

bool has_shape(const Tensor& tensor, const Shape& shape) {
  const auto sizes = tensor.sizes();
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

}  // namespace

Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype, const Shape& shape) {
  device_of(name, tensor);
  require(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ", tensor.scalar_type());
  require(has_shape(tensor, shape), name, " must have shape ", shown(shape), ", got ",
          shown(shape_of(tensor)));
  const Tensor dense = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  const bool aligned = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % kAlignment == 0;
  return aligned ? dense : torch::stable::clone(dense);
}

Optional checked(const char* name, const Optional& tensor, ScalarType dtype, const Shape& shape) {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, dtype, shape);
}

Tensor checked_out(const char* name, const Tensor& tensor, ScalarType dtype, const Shape& shape) {
  const Tensor found = checked(name, tensor, dtype, shape);
  require(found.const_data_ptr() == tensor.const_data_ptr(), name,
          " must be contiguous and aligned");
  return found;
}

namespace {

// Element `i` of a list that is empty where the cell has no such tensor.
Optional element(const char* name, const Tensors& list, size_t i, bool wanted, ScalarType dtype,
                 const Shape& shape) {
  require(wanted ? i < list.size() : list.empty(), name,
          wanted ? " is missing" : " is not this cell's");
  if (!wanted) return std::nullopt;
  return checked(name, list[i], dtype, shape);
}

Optional element(const char* name, const Optionals& list, size_t i, ScalarType dtype,
                 const Shape& shape) {
  require(i < list.size(), name, " is missing");
  return checked(name, list[i], dtype, shape);
}

}  // namespace

Sizes sizes_of(const std::string& name, int64_t T, int64_t B, const Tensor& w_hh) {
  const CellInfo& cell = find_cell(name);
  const ScalarType dtype = w_hh.scalar_type();
  require(w_hh.dim() == 2, "w_hh must have 2 dimensions");
  const int64_t H = w_hh.size(0) / cell.gates, P = w_hh.size(1);
  require(T > 0 && H > 0 && P > 0, "sizes must be positive");
  require(cell.projected() || P == H, "w_hh must be square for each gate");
  require(is_wide(dtype) || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
          "no kernel for ", dtype);
  return {&cell, dtype, T, B, H, P};
}

namespace {

void check_directions(size_t directions, const std::vector<bool>& reverse) {
  require(directions == reverse.size() && (directions == 1 || directions == 2),
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
  const NoTf32 strictly(kernel.math == "fp32");
  const std::string& strategy = kernel.strategy;
  if (strategy == "stepwise") return run_stepwise(scan);
  require(strategy == "resident" || strategy == "cluster" || strategy == "grid",
          "no strategy is called '", strategy, "'");
  const size_t numbers = strategy == "resident" ? 1 : 4;
  require(kernel.choice.size() == numbers, strategy, " takes ", numbers, " numbers, got ",
          kernel.choice.size());
  const ScalarType dtype = scan.sizes.dtype;
  using cuda::Math;
  const auto choose = [&](Math chosen, const char* name, ScalarType of) {
    if (kernel.math == name && dtype == of) run_kernel(scan, kernel, chosen);
    return kernel.math == name && dtype == of;
  };
  const bool found = choose(Math::kBf16, "bf16", ScalarType::BFloat16) ||
                     choose(Math::kF16, "fp16", ScalarType::Half) ||
                     choose(Math::kTf32, "tf32", ScalarType::Float) ||
                     choose(Math::kFp32, "fp32", ScalarType::Float);
  require(found, "no resident kernel computes ", dtype, " as '", kernel.math, "'");
}

}  // namespace

void run(const ForwardScan& scan, const Kernel& kernel) { run_any(scan, kernel); }
void run(const BackwardScan& scan, const Kernel& kernel) { run_any(scan, kernel); }

ForwardResult cuda_forward(std::string name, std::string strategy, std::string math,
                           std::vector<int64_t> choice, Tensors gates, Tensors w_hh, Tensors w_hr,
                           Tensors h0, Tensors c0, Optional lengths, Optional resets,
                           std::vector<bool> reverse, bool training, bool every_c) {
  check_directions(gates.size(), reverse);
  require(gates[0].dim() == 4 && !w_hh.empty(), "gates must have 4 dimensions, and w_hh is needed");
  const OnDevice guard(device_of("gates", gates[0]));
  ForwardScan scan{
      sizes_of(name, gates[0].size(0), gates[0].size(1), w_hh[0]), training, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  scan.lengths = checked("lengths", lengths, ScalarType::Long, {B});
  scan.resets = checked("resets", resets, ScalarType::Bool, {T, B});
  const auto made = [&](const Shape& shape, ScalarType of) {
    return empty_like(w_hh[0], shape, of);
  };
  ForwardResult result;
  for (size_t i = 0; i < gates.size(); ++i) {
    ForwardTensors d;
    d.gates = checked_out("gates", gates[i], dtype, {T, B, H, cuda::slots_of(cell->id)});
    d.w_hh = element("w_hh", w_hh, i, true, dtype, {cell->gates * H, P});
    d.w_hr = element("w_hr", w_hr, i, cell->projected(), dtype, {P, H});
    d.h0 = element("h0", h0, i, true, dtype, {B, P});
    d.c0 = element("c0", c0, i, has_c, dtype, {B, H});
    d.y = made({T, B, P}, dtype), d.h_last = made({B, P}, dtype);
    if (has_c) d.c_last = made({B, H}, dtype);
    if (has_c && every_c) d.c = made({T, B, H}, wide(dtype));
    if (cell->projected() && training) d.every_m = made({T, B, H}, dtype);
    d.reverse = reverse[i];
    std::get<0>(result).push_back(*d.y), std::get<1>(result).push_back(*d.h_last);
    if (d.c_last) std::get<2>(result).push_back(*d.c_last);
    if (d.c) std::get<3>(result).push_back(*d.c);
    if (d.every_m) std::get<4>(result).push_back(*d.every_m);
    scan.directions.push_back(std::move(d));
  }
  if (B > 0) run(scan, {strategy, math, choice});
  return result;
}

BackwardResult cuda_backward(std::string name, std::string strategy, std::string math,
                             std::vector<int64_t> choice, Tensors saved, Tensors y, Tensors c,
                             Tensors w_hh, Tensors w_hr, Tensors h0, Tensors c0, Optional lengths,
                             Optional resets, std::vector<bool> reverse, Optionals dy, Optionals dc,
                             Tensors dh_last, Tensors dc_last, Optional scale, double clip) {
  check_directions(y.size(), reverse);
  require(y[0].dim() == 3 && !w_hh.empty(), "y must have 3 dimensions, and w_hh is needed");
  const OnDevice guard(device_of("y", y[0]));
  BackwardScan scan{sizes_of(name, y[0].size(0), y[0].size(1), w_hh[0]), clip, {}, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  scan.lengths = checked("lengths", lengths, ScalarType::Long, {B});
  scan.resets = checked("resets", resets, ScalarType::Bool, {T, B});
  scan.scale = checked("scale", scale, ScalarType::Float, {1});
  const auto made = [&](const Shape& shape, ScalarType of) {
    return empty_like(w_hh[0], shape, of);
  };
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
    d.dgates = made({T, B, H, S}, dtype), d.dh0 = made({B, P}, dtype);
    if (has_c) d.dc0 = made({B, H}, dtype);
    if (cell->projected()) d.every_dh = made({T, B, P}, dtype);
    d.reverse = reverse[i];
    std::get<0>(result).push_back(*d.dgates), std::get<1>(result).push_back(*d.dh0);
    if (d.dc0) std::get<2>(result).push_back(*d.dc0);
    if (d.every_dh) std::get<3>(result).push_back(*d.every_dh);
    scan.directions.push_back(std::move(d));
  }
  if (B > 0) run(scan, {strategy, math, choice});
  return result;
}

}  // namespace rnnfast::ops
