// What the ops need of tensors, in torch's stable ABI: no other header of torch is included in this
// folder, so that one library runs with every torch from TORCH_TARGET_VERSION on.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
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

template <class S>
S* data(const Tensor& tensor) {
  if constexpr (std::is_const_v<S>) {
    return static_cast<S*>(tensor.const_data_ptr());
  } else {
    return static_cast<S*>(tensor.mutable_data_ptr());
  }
}

template <class S>
S* data(const Optional& tensor) {
  return tensor ? data<S>(*tensor) : nullptr;
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

// Memory of at least `bytes` that a thread's calls share: fresh pages cost more than packing a
// small layer's weights. 64-byte aligned; valid up to the next call.
inline void* scratch(int64_t bytes) {
  constexpr std::align_val_t kLine{64};
  const auto free = [](void* p) { ::operator delete(p, kLine); };
  static thread_local std::unique_ptr<void, void (*)(void*)> kept(nullptr, free);
  static thread_local int64_t room = 0;
  if (room < bytes) {
    room = 0;
    kept.reset();
    kept.reset(::operator new(static_cast<size_t>(bytes), kLine));
    room = bytes;
  }
  return kept.get();
}

}  // namespace rnnfast::ops
