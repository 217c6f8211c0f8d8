// Which tensors the kernels of csrc/clip take, on either device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "scan/problem.h"

namespace rnnfast {

inline std::optional<DType> clip_dtype(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kDouble:
      return DType::kFloat64;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    default:
      return std::nullopt;
  }
}

// A tensor of its own memory, and nothing lazy or wrapped about it.
inline bool is_plain(const at::Tensor& tensor) {
  using at::DispatchKey;
  constexpr at::DispatchKeySet kOdd({DispatchKey::Python, DispatchKey::Negative,
                                     DispatchKey::Conjugate, DispatchKey::ZeroTensor,
                                     DispatchKey::Functionalize, DispatchKey::FuncTorchBatched,
                                     DispatchKey::FuncTorchGradWrapper});
  return tensor.layout() == at::kStrided && tensor.has_storage() &&
         !tensor.key_set().has_any(kOdd) && !tensor.is_inference();
}

}  // namespace rnnfast
