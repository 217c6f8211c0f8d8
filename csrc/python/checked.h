// Tensors as the host's kernels take them: on the CPU, of the dtype and the shape, contiguous.
#pragma once

#include <optional>

#include "python/tensor.h"

namespace rnnfast::python {

// Not so of torch's zero tensors, which forward mode makes.
inline bool has_memory(const Tensor& tensor) {
  return tensor.const_data_ptr() || tensor.numel() == 0;
}

inline void check_number(ScalarType dtype) {
  check_type(dtype == ScalarType::Float || dtype == ScalarType::Double,
             "expected float32 or float64, got ", dtype);
}

inline Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype,
                      const Sizes& shape) {
  check_value(tensor.is_cpu(), name, " must be on the CPU, got ", tensor.device());
  check_type(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
             tensor.scalar_type());
  check_value(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
  check_value(has_memory(tensor), name, " has no memory");
  return tensor.resolve_neg().contiguous();
}

inline std::optional<Tensor> checked(const char* name, const std::optional<Tensor>& tensor,
                                     ScalarType dtype, const Sizes& shape) {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, dtype, shape);
}

}  // namespace rnnfast::python
