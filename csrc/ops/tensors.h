// What the ops need of tensors, in torch's stable ABI: no other header of torch is included in this
// folder, so that one library runs with every torch from TORCH_TARGET_VERSION on.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace rnnfast::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// Unless `ok`, throws a std::runtime_error that says `parts`.
template <class... Parts>
void require(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream text;
  text << "rnnfast: ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string shown(const Shape& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

inline Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

inline bool is_wide(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double;
}

// What numbers stored in `dtype` are computed in.
inline ScalarType wide(ScalarType dtype) { return is_wide(dtype) ? dtype : ScalarType::Float; }

inline Tensor empty(const Shape& shape, ScalarType dtype) {
  return torch::stable::empty(shape, dtype);
}

inline Tensor cast(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

// Contiguous and in `dtype`.
inline Tensor plain(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::contiguous(cast(tensor, dtype));
}

// The same in memory of its own.
inline Tensor copied(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::to(tensor, dtype, std::nullopt, std::nullopt, std::nullopt, false, true,
                           torch::headeronly::MemoryFormat::Contiguous);
}

// No graph is recorded of torch's operations that a kernel of ours calls.
class WithoutGrad {
 public:
  WithoutGrad() : before_(aoti_torch_grad_mode_is_enabled()) {
    aoti_torch_grad_mode_set_enabled(false);
  }
  ~WithoutGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  WithoutGrad(const WithoutGrad&) = delete;
  WithoutGrad& operator=(const WithoutGrad&) = delete;

 private:
  bool before_;
};

}  // namespace rnnfast::ops
