// The ops of a part of a scan's steps, for rnnfast/backends/cuda/pipeline.py: one direction, into
// memory that is there, the state handed from part to part in fp32.
#include "cuda/device/layout.h"
#include "ops_cuda/device.h"
#include "ops_cuda/scan.h"

namespace rnnfast::ops {
namespace {

// [h, c] of a cell with both, [h], or nothing.
CarriedTensors carried(const char* name, const Tensors& list, const Sizes& sizes) {
  const size_t states = static_cast<size_t>(sizes.cell->states);
  require(list.empty() || list.size() == states, name, " must have ", states,
          " tensors, or none, got ", list.size());
  CarriedTensors made;
  if (!list.empty()) made.h = checked_out(name, list[0], ScalarType::Float, {sizes.B, sizes.H});
  if (list.size() == 2) made.c = checked_out(name, list[1], ScalarType::Float, {sizes.B, sizes.H});
  return made;
}

// One that this cell has, or has not.
Optional of_cell(const char* name, const Optional& tensor, bool wanted, ScalarType dtype,
                 const Shape& shape, bool written = false) {
  require(tensor.has_value() == wanted, name, wanted ? " is missing" : " is not this cell's");
  if (!wanted) return std::nullopt;
  return written ? checked_out(name, *tensor, dtype, shape) : checked(name, *tensor, dtype, shape);
}

constexpr bool kWritten = true;

Sizes sizes_of_part(const std::string& name, const std::string& strategy, const Tensor& y,
                    const Tensor& w_hh) {
  require(y.dim() == 3, "y must have 3 dimensions");
  const Sizes sizes = sizes_of(name, y.size(0), y.size(1), w_hh);
  require(strategy == "resident" || strategy == "cluster",
          "parts of a scan can't be computed by the strategy '", strategy, "'");
  return sizes;
}

}  // namespace

void cuda_forward_part(std::string name, std::string strategy, std::string math,
                       std::vector<int64_t> choice, Tensor gates, Tensor w_hh, Tensor h0,
                       Optional c0, Optional lengths, Optional resets, bool training,
                       Tensors before, Tensor y, Tensor h_last, Optional c_last, Optional c,
                       Tensors after) {
  const OnDevice guard(device_of("y", y));
  ForwardScan scan{sizes_of_part(name, strategy, y, w_hh), training, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  scan.lengths = checked("lengths", lengths, ScalarType::Long, {B});
  scan.resets = checked("resets", resets, ScalarType::Bool, {T, B});
  ForwardTensors d;
  d.gates = checked_out("gates", gates, dtype, {T, B, H, cuda::slots_of(cell->id)});
  d.w_hh = checked("w_hh", w_hh, dtype, {cell->gates * H, P});
  d.h0 = checked("h0", h0, dtype, {B, P});
  d.c0 = of_cell("c0", c0, has_c, dtype, {B, H});
  d.before = carried("before", before, scan.sizes);
  d.y = checked_out("y", y, dtype, {T, B, P});
  d.h_last = checked_out("h_last", h_last, dtype, {B, P});
  d.c_last = of_cell("c_last", c_last, has_c, dtype, {B, H}, kWritten);
  if (c) d.c = of_cell("c", c, has_c, wide(dtype), {T, B, H}, kWritten);
  d.after = carried("after", after, scan.sizes);
  scan.directions.push_back(std::move(d));
  if (B > 0) run(scan, {strategy, math, choice});
}

void cuda_backward_part(std::string name, std::string strategy, std::string math,
                        std::vector<int64_t> choice, Optional saved, Tensor y, Optional c,
                        Tensor w_hh, Tensor h0, Optional c0, Optional lengths, Optional resets,
                        Optional dy, Tensor dh_last, Optional dc_last, double clip,
                        Optional c_before, Tensors after, Tensor dgates, Tensor dh0, Optional dc0,
                        Tensors before) {
  const OnDevice guard(device_of("y", y));
  BackwardScan scan{sizes_of_part(name, strategy, y, w_hh), clip, {}, {}, {}, {}};
  const auto [cell, dtype, T, B, H, P] = scan.sizes;
  const bool has_c = cell->states == 2;
  const int64_t S = cuda::slots_of(cell->id);
  scan.lengths = checked("lengths", lengths, ScalarType::Long, {B});
  scan.resets = checked("resets", resets, ScalarType::Bool, {T, B});
  BackwardTensors d;
  d.saved = of_cell("saved", saved, !cell->saves_output, dtype, {T, B, H, S});
  d.y = checked("y", y, dtype, {T, B, P});
  d.c = of_cell("c", c, has_c, wide(dtype), {T, B, H});
  d.w_hh = checked("w_hh", w_hh, dtype, {cell->gates * H, P});
  d.h0 = checked("h0", h0, dtype, {B, P});
  d.c0 = of_cell("c0", c0, has_c, dtype, {B, H});
  d.dy = checked("dy", dy, dtype, {T, B, P});
  d.dh_last = checked("dh_last", dh_last, dtype, {B, P});
  d.dc_last = of_cell("dc_last", dc_last, has_c, dtype, {B, H});
  d.c_before = checked("c_before", c_before, wide(dtype), {B, H});
  d.after = carried("after", after, scan.sizes);
  d.dgates = checked_out("dgates", dgates, dtype, {T, B, H, S});
  d.dh0 = checked_out("dh0", dh0, dtype, {B, P});
  d.dc0 = of_cell("dc0", dc0, has_c, dtype, {B, H}, kWritten);
  d.before = carried("before", before, scan.sizes);
  scan.directions.push_back(std::move(d));
  if (B > 0) run(scan, {strategy, math, choice});
}

}  // namespace rnnfast::ops
