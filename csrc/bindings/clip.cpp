// Norm, scale and clamp of gradients on the CPU, for rnnfast/clip. Lists that hold anything else
// than plain dense floating-point CPU tensors are not taken: None or False is returned, and nothing
// has been touched.
#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "bindings/clip_tensors.h"
#include "bindings/threads.h"
#include "clip/cpu.h"

namespace rnnfast {
namespace {

namespace py = pybind11;
using at::Tensor;

double largest(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return 65504;
    case at::kBFloat16:
      return std::ldexp(255.0 / 128, 127);
    case at::kFloat:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

// Axes from the widest stride to the narrowest, neighbours joined where they are one. What is left
// is empty for dense memory.
std::vector<cpu::Axis> axes_of(const Tensor& tensor) {
  if (tensor.is_non_overlapping_and_dense()) return {};
  std::vector<cpu::Axis> axes;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) axes.push_back({tensor.size(d), tensor.stride(d)});
  }
  std::stable_sort(axes.begin(), axes.end(),
                   [](const auto& a, const auto& b) { return a.stride > b.stride; });
  std::vector<cpu::Axis> joined;
  for (const cpu::Axis& axis : axes) {
    if (!joined.empty() && joined.back().stride == axis.size * axis.stride) {
      joined.back() = {joined.back().size * axis.size, axis.stride};
    } else {
      joined.push_back(axis);
    }
  }
  return joined;
}

// A Python list of tensors as the kernels take it.
class List {
 public:
  // `taken()` is false where the list holds something else. `written`: the tensors are to be
  // changed; RuntimeError as torch gives it where one writes to the same memory twice.
  List(const py::list& list, bool written) {
    tensors_.reserve(list.size());
    gradients_.reserve(list.size());
    for (const py::handle item : list) {
      if (!THPVariable_CheckExact(item.ptr())) return;
      const Tensor& tensor = THPVariable_Unpack(item.ptr());
      const std::optional<DType> dtype = clip_dtype(tensor);
      if (!dtype || !tensor.is_cpu() || !is_plain(tensor)) return;
      cpu::Gradient gradient{nullptr, *dtype, tensor.numel(), axes_of(tensor)};
      if (written && !gradient.axes.empty()) at::assert_no_internal_overlap(tensor);
      tensors_.push_back(tensor);
      gradients_.push_back(std::move(gradient));
    }
    for (size_t i = 0; i < tensors_.size(); ++i) {
      gradients_[i].data = written ? tensors_[i].mutable_data_ptr()
                                   : const_cast<void*>(tensors_[i].const_data_ptr());
    }
    taken_ = true;
  }

  bool taken() const { return taken_; }

  // What torch promotes them to. The list is not empty.
  at::ScalarType dtype() const {
    at::ScalarType result = tensors_[0].scalar_type();
    for (const Tensor& tensor : tensors_) result = c10::promoteTypes(result, tensor.scalar_type());
    return result;
  }

  // torch raises for the largest element of nothing.
  bool has_empty() const {
    return std::any_of(tensors_.begin(), tensors_.end(),
                       [](const Tensor& t) { return !t.numel(); });
  }

  // Whether torch would raise because a dtype lacks this number.
  bool overflowed_by(double bound) const {
    return std::any_of(tensors_.begin(), tensors_.end(), [bound](const Tensor& t) {
      return std::isfinite(bound) && std::fabs(bound) > largest(t.scalar_type());
    });
  }

  double norm(const cpu::NormType& type) const {
    const py::gil_scoped_release no_gil;
    return cpu::ChunkList(gradients_).norm(type, host_threads());
  }

  void scale(double factor) const {
    change([&](const cpu::ChunkList& chunks) { chunks.scale(factor, host_threads()); },
           factor == 1);
  }

  void clamp(double bound) const {
    change([&](const cpu::ChunkList& chunks) { chunks.clamp(bound, host_threads()); }, false);
  }

 private:
  // `nothing`: no value would change, so none is written.
  template <class Body>
  void change(const Body& body, bool nothing) const {
    for (const Tensor& tensor : tensors_) tensor.unsafeGetTensorImpl()->bump_version();
    if (nothing) return;
    const py::gil_scoped_release no_gil;
    if (!cpu::may_overlap(gradients_)) return body(cpu::ChunkList(gradients_));
    for (const cpu::Gradient& gradient : gradients_) {  // listed twice, changed twice
      body(cpu::ChunkList({gradient}));
    }
  }

  std::vector<Tensor> tensors_;
  std::vector<cpu::Gradient> gradients_;
  bool taken_ = false;
};

// A 0-dim tensor of `dtype`, rounded once.
Tensor scalar(double value, at::ScalarType dtype) {
  Tensor result = at::empty({}, at::TensorOptions().dtype(dtype));
  result.fill_(value);
  return result;
}

// The norm of all tensors, p > 0, as a 0-dim tensor of the dtype that theirs are promoted to, or if
// `wide` of float64; None where the list is not taken.
// With `max_norm` the tensors are then scaled, `if_finite` only where the result is finite.
std::optional<Tensor> clip_norm(const py::list& list, double p, bool wide,
                                std::optional<double> max_norm, bool if_finite) {
  const List tensors(list, max_norm.has_value());
  if (!tensors.taken() || (std::isinf(p) && tensors.has_empty())) return std::nullopt;
  const double norm = tensors.norm(cpu::NormType::of(p));
  const Tensor result = scalar(norm, wide ? at::kDouble : tensors.dtype());
  if (max_norm && !(if_finite && !std::isfinite(result.item<double>()))) {
    tensors.scale(cpu::clip_factor(norm, *max_norm));
  }
  return result;
}

// Multiplies by min(1, max_norm / (norm + 1e-6)), norm 0-dim. False where the list is not taken.
bool clip_scale(const py::list& list, const Tensor& norm, double max_norm) {
  const List tensors(list, true);
  if (tensors.taken()) tensors.scale(cpu::clip_factor(norm.item<double>(), max_norm));
  return tensors.taken();
}

// Clamps to [-bound, bound]; a bound of NaN makes everything NaN. False where the list is not
// taken.
bool clip_value(const py::list& list, double bound) {
  const List tensors(list, true);
  if (!tensors.taken() || tensors.overflowed_by(bound)) return false;
  std::isnan(bound) ? tensors.scale(bound) : tensors.clamp(bound);
  return true;
}

}  // namespace
}  // namespace rnnfast

void bind_clip(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace rnnfast;
  m.def("clip_norm", &clip_norm, py::arg("tensors"), py::arg("p"), py::arg("wide"),
        py::arg("max_norm") = py::none(), py::arg("if_finite") = false);
  m.def("clip_scale", &clip_scale, py::arg("tensors"), py::arg("norm"), py::arg("max_norm"));
  m.def("clip_value", &clip_value, py::arg("tensors"), py::arg("bound"));
}
