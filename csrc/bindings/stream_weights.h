// Whether the weights that were packed are still those of the layer.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace rnnfast {

// A layer's parameters, as they were: the objects in its dictionary, their memory and version. A
// write past the version counter (`weight.data.mul_(2)`, NumPy) shows in samples of the values.
class WatchedWeights {
 public:
  WatchedWeights() = default;
  WatchedWeights(pybind11::dict parameters, const std::vector<std::string>& names)
      : parameters_(std::move(parameters)) {
    for (const std::string& name : names) {
      pybind11::str key(name);
      PyObject* found = PyDict_GetItemWithError(parameters_.ptr(), key.ptr());
      TORCH_CHECK_VALUE(found && THPVariable_Check(found), name, " is not a parameter");
      Watched w{key, pybind11::reinterpret_borrow<pybind11::object>(found)};
      const at::Tensor& tensor = w.tensor();
      w.impl = tensor.unsafeGetTensorImpl();
      w.version = tensor._version();
      w.data = static_cast<const char*>(tensor.const_data_ptr());
      w.find_samples(tensor);
      weights_.push_back(std::move(w));
    }
  }

  // Needs the GIL.
  bool same() const {
    for (const Watched& w : weights_) {
      if (PyDict_GetItemWithError(parameters_.ptr(), w.name.ptr()) != w.object.ptr()) return false;
      const at::Tensor& tensor = w.tensor();
      if (tensor.unsafeGetTensorImpl() != w.impl || tensor._version() != w.version) return false;
      if (tensor.const_data_ptr() != w.data) return false;
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
    pybind11::str name;
    pybind11::object object;
    const c10::TensorImpl* impl = nullptr;  // not held: swap_tensors wants to be the only one
    uint32_t version = 0;
    const char* data = nullptr;
    size_t element = 0;
    int count = 0;
    std::array<int64_t, kSamples> at{};  // in bytes
    std::array<uint64_t, kSamples> values{};

    const at::Tensor& tensor() const { return THPVariable_Unpack(object.ptr()); }

    // Spread over the tensor, first and last element among them.
    void find_samples(const at::Tensor& tensor) {
      const int64_t n = tensor.numel();
      element = tensor.element_size();
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

  pybind11::dict parameters_;
  std::vector<Watched> weights_;
};

}  // namespace rnnfast
