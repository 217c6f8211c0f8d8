// The dtypes that kernels take. Type is torch's ScalarType, or an enum that names them as torch does.
#pragma once

#include <optional>

#include "scan/problem.h"

namespace rnnfast {

template <class Type>
std::optional<DType> known_dtype(Type dtype) {
  switch (dtype) {
    case Type::Float:
      return DType::kFloat32;
    case Type::Double:
      return DType::kFloat64;
    case Type::BFloat16:
      return DType::kBFloat16;
    case Type::Half:
      return DType::kFloat16;
    default:
      return std::nullopt;
  }
}

// What torch makes of tensors of these dtypes, of which there is at least one.
template <class Tensors>
auto promoted(const Tensors& tensors) {
  auto result = tensors.front().scalar_type();
  using Type = decltype(result);
  for (const auto& tensor : tensors) {
    const Type other = tensor.scalar_type();
    if (other == result) continue;
    const bool has_double = other == Type::Double || result == Type::Double;
    result = has_double ? Type::Double : Type::Float;
  }
  return result;
}

}  // namespace rnnfast
