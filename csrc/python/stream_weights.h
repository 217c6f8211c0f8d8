// Whether the weights that were packed are still those of the layer.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "python/tensor.h"

namespace rnnfast::python {

// A layer's parameters, as they were: the objects in its dictionary, their memory and version. A
// write past the version counter (`weight.data.mul_(2)`, NumPy) shows in samples of the values.
class WatchedWeights {
 public:
  WatchedWeights() = default;
  // Of torch's parameters in a dictionary. ValueError for a name that is not there.
  WatchedWeights(Ref parameters, const std::vector<std::string>& names)
      : parameters_(std::move(parameters)), version_(interned("_version")) {
    for (const std::string& name : names) {
      const Ref key = interned(name.c_str());
      PyObject* found = PyDict_GetItemWithError(parameters_.get(), key.get());
      if (PyErr_Occurred()) throw Raised();
      check_value(found, name, " is not a parameter");
      const Ref object = Ref::borrowed(found);
      const Tensor tensor = Tensor::of(object);
      Watched w{key, object, version(object), tensor.const_data_ptr<char>()};
      w.find_samples(tensor);
      weights_.push_back(std::move(w));
    }
  }

  bool same() const {
    for (const Watched& w : weights_) {
      if (PyDict_GetItemWithError(parameters_.get(), w.name.get()) != w.object.get()) return false;
      if (version(w.object) != w.version) return false;
      if (Tensor::of(w.object).const_data_ptr<char>() != w.data) return false;
      for (int i = 0; i < w.count; ++i) {
        uint64_t value = 0;
        std::memcpy(&value, w.data + w.at[i], w.element);
        if (value != w.values[i]) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int kSamples = 8;

  struct Watched {
    Ref name, object;  // not the memory: swap_tensors wants to be the only one that has it
    int64_t version = 0;
    const char* data = nullptr;
    size_t element = 0;
    int count = 0;
    std::array<int64_t, kSamples> at{};  // in bytes
    std::array<uint64_t, kSamples> values{};

    // Spread over the tensor, first and last element among them.
    void find_samples(const Tensor& tensor) {
      const int64_t n = tensor.numel();
      element = static_cast<size_t>(tensor.element_size());
      count = static_cast<int>(std::min<int64_t>(n, kSamples));
      for (int i = 0; i < count; ++i) {
        int64_t index = count > 1 ? (n - 1) * i / (count - 1) : 0, offset = 0;
        for (int64_t d = tensor.dim() - 1; d >= 0; --d) {
          offset += index % tensor.size(d) * tensor.stride(d);
          index /= tensor.size(d);
        }
        at[i] = offset * static_cast<int64_t>(element);
        std::memcpy(&values[i], data + at[i], element);
      }
    }
  };

  int64_t version(const Ref& object) const {
    const Ref found = Ref::owned(PyObject_GetAttr(object.get(), version_.get()));
    const int64_t version = PyLong_AsLongLong(found.get());
    if (version == -1 && PyErr_Occurred()) throw Raised();
    return version;
  }

  Ref parameters_, version_;
  std::vector<Watched> weights_;
};

}  // namespace rnnfast::python
