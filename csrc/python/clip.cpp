// Norm, scale and clamp of gradients on the CPU, for rnnfast/clip, and which lists are taken on
// CUDA, too. Those that hold anything else than plain floating-point tensors of one device are not:
// None or False is returned, and nothing has been touched.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "clip/cpu.h"
#include "python/bind.h"
#include "python/module.h"
#include "scan/dtypes.h"

namespace rnnfast::python {
namespace {

double largest(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half:
      return 65504;
    case ScalarType::BFloat16:
      return std::ldexp(255.0 / 128, 127);
    case ScalarType::Float:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

// Whether a dtype lacks this number, for which torch would raise.
bool overflows(ScalarType dtype, double bound) {
  return std::isfinite(bound) && std::fabs(bound) > largest(dtype);
}

// Axes from the widest stride to the narrowest, neighbours joined where they are one. What is left
// is empty for dense memory.
std::vector<cpu::Axis> axes_of(const Tensor& tensor) {
  if (tensor.is_dense()) return {};
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

// Of torch, found at import.
struct Names {
  Ref tensor, parameter, is_neg, is_inference, item, increment_version;
};

Names& names() {
  static Names& found = *new Names;
  return found;
}

// The tensor, where it is one of its own memory and nothing lazy or wrapped about it; or none.
std::optional<Tensor> plain(const Ref& object) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object.get()));
  if (type != names().tensor.get() && type != names().parameter.get()) return std::nullopt;
  std::optional<Tensor> tensor = Tensor::strided(object);
  if (!tensor) return std::nullopt;
  return tensor->has_memory() ? tensor : std::nullopt;
}

bool is_inference(const Tensor& tensor) {
  return names().is_inference(tensor.object().get()).is_true();
}

// A negated view is every other number of complex ones: what is dense is not asked.
bool is_negated(const Tensor& tensor, const cpu::Gradient& gradient) {
  if (gradient.axes.empty() && tensor.numel() > 1) return false;
  return tensor.object().call(names().is_neg).is_true();
}

// A Python list of tensors as the kernels take it.
class List {
 public:
  // `taken()` is false where the list holds something else. `written`: the tensors are to be
  // changed; then it is so too where one writes to the same memory twice, or is negated, which torch
  // refuses.
  List(const Ref& list, bool written) : list_(list) {
    const Py_ssize_t n = PyList_Size(list.get());
    if (n < 0) throw Raised();
    tensors_.reserve(n), gradients_.reserve(n);
    for (Py_ssize_t i = 0; i < n; ++i) {
      std::optional<Tensor> tensor = plain(Ref::borrowed(PyList_GetItem(list.get(), i)));
      if (!tensor || !tensor->is_cpu()) return;
      const std::optional<DType> dtype = known_dtype(tensor->scalar_type());
      if (!dtype) return;
      cpu::Gradient gradient{tensor->mutable_data_ptr(), *dtype, tensor->numel(), axes_of(*tensor)};
      for (const cpu::Axis& axis : gradient.axes)
        if (written && axis.stride == 0) return;
      if (written && is_negated(*tensor, gradient)) return;
      tensors_.push_back(std::move(*tensor));
      gradients_.push_back(std::move(gradient));
    }
    taken_ = true;
  }

  bool taken() const { return taken_; }

  ScalarType dtype() const { return promoted(tensors_); }  // the list is not empty

  // torch raises for the largest element of nothing.
  bool has_empty() const {
    return std::any_of(tensors_.begin(), tensors_.end(),
                       [](const Tensor& t) { return !t.numel(); });
  }

  bool overflowed_by(double bound) const {
    return std::any_of(tensors_.begin(), tensors_.end(),
                       [bound](const Tensor& t) { return overflows(t.scalar_type(), bound); });
  }

  double norm(const cpu::NormType& type) const {
    const int threads = host_threads();
    const WithoutGil no_gil;
    return cpu::ChunkList(gradients_).norm(type, threads);
  }

  // False, and nothing was done, for tensors that may not be written to, as torch will say.
  bool scale(double factor) const {
    return change([&](const cpu::ChunkList& chunks, int threads) { chunks.scale(factor, threads); },
                  factor == 1);
  }

  bool clamp(double bound) const {
    return change([&](const cpu::ChunkList& chunks, int threads) { chunks.clamp(bound, threads); },
                  false);
  }

 private:
  // `nothing`: no value would change, so none is written.
  template <class Body>
  bool change(const Body& body, bool nothing) const {
    for (const Tensor& t : tensors_) {  // whose versions are not counted, nor refused here
      if (is_inference(t)) return false;
    }
    try {
      names().increment_version(list_.get());
    } catch (const Raised&) {
      if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) throw;
      PyErr_Clear();
      return false;
    }
    if (nothing) return true;
    const int threads = host_threads();
    const WithoutGil no_gil;
    if (!cpu::may_overlap(gradients_)) {
      body(cpu::ChunkList(gradients_), threads);
      return true;
    }
    for (const cpu::Gradient& gradient : gradients_) {  // listed twice, changed twice
      body(cpu::ChunkList({gradient}), threads);
    }
    return true;
  }

  Ref list_;
  std::vector<Tensor> tensors_;
  std::vector<cpu::Gradient> gradients_;
  bool taken_ = false;
};

// `value` into a 0-dim tensor; what it is there.
template <class T>
double put(double value, const Tensor& scalar) {
  const T stored = static_cast<T>(value);
  *scalar.mutable_data_ptr<T>() = stored;
  return static_cast<double>(stored);
}

double put(double value, const Tensor& scalar) {
  switch (scalar.scalar_type()) {
    case ScalarType::Double:
      return put<double>(value, scalar);
    case ScalarType::Half:
      return put<Half>(value, scalar);
    case ScalarType::BFloat16:
      return put<BFloat16>(value, scalar);
    default:
      return put<float>(value, scalar);
  }
}

// The norm of all tensors, p > 0, as a 0-dim tensor of the dtype that theirs are promoted to, or if
// `wide` of float64; None where the list is not taken.
// With `max_norm` the tensors are then scaled, `if_finite` only where the result is finite.
std::optional<Tensor> clip_norm(const Ref& list, double p, bool wide,
                                std::optional<double> max_norm, bool if_finite) {
  const List tensors(list, max_norm.has_value());
  if (!tensors.taken() || (std::isinf(p) && tensors.has_empty())) return std::nullopt;
  const double norm = tensors.norm(cpu::NormType::of(p));
  const Tensor result = empty({}, wide ? ScalarType::Double : tensors.dtype());
  const double shown = put(norm, result);
  if (max_norm && !(if_finite && !std::isfinite(shown)) &&
      !tensors.scale(cpu::clip_factor(norm, *max_norm)))
    return std::nullopt;
  return result;
}

// Multiplies by min(1, max_norm / (norm + 1e-6)), norm 0-dim. False where the list is not taken.
bool clip_scale(const Ref& list, const Ref& norm, double max_norm) {
  const List tensors(list, true);
  if (!tensors.taken()) return false;
  const double found = From<double>::of(norm.call(names().item).get());
  return tensors.scale(cpu::clip_factor(found, max_norm));
}

// Clamps to [-bound, bound]; a bound of NaN makes everything NaN. False where the list is not
// taken; a bound below 0 is torch's to make sense of.
bool clip_value(const Ref& list, double bound) {
  const List tensors(list, true);
  if (bound < 0 || !tensors.taken() || tensors.overflowed_by(bound)) return false;
  return std::isnan(bound) ? tensors.scale(bound) : tensors.clamp(bound);
}

// Whether the kernels for CUDA take a list; `written`: they are to change it, by a clamp to `bound`
// if that is given.
bool clip_takes(const Ref& list, bool written, std::optional<double> bound) {
  const Py_ssize_t n = PyList_Size(list.get());
  if (n < 0) throw Raised();
  std::optional<Tensor> first;
  for (Py_ssize_t i = 0; i < n; ++i) {
    const std::optional<Tensor> tensor = plain(Ref::borrowed(PyList_GetItem(list.get(), i)));
    if (!tensor || !tensor->is_cuda() || !known_dtype(tensor->scalar_type())) return false;
    if (!first) first = tensor;
    if (!tensor->is_beside(*first)) return false;
    if (bound && overflows(tensor->scalar_type(), *bound)) return false;
    const bool negated = tensor->object().call(names().is_neg).is_true();
    if (written && (negated || tensor->repeats() || is_inference(*tensor))) return false;
  }
  return n > 0;
}

}  // namespace

void bind_clip(std::vector<PyMethodDef>& functions) {
  Names& n = names();
  n.tensor = import("torch").attribute("Tensor");
  n.parameter = import("torch.nn").attribute("Parameter");
  n.increment_version = import("torch.autograd.graph").attribute("increment_version");
  n.is_inference = n.tensor.attribute("is_inference");
  n.is_neg = interned("is_neg");
  n.item = interned("item");
  bind<&clip_norm>(functions, "clip_norm", "tensors, p, wide, max_norm, if_finite");
  bind<&clip_scale>(functions, "clip_scale", "tensors, norm, max_norm");
  bind<&clip_value>(functions, "clip_value", "tensors, bound");
  bind<&clip_takes>(functions, "clip_takes", "tensors, written, bound");
}

}  // namespace rnnfast::python
