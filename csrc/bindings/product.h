// The product of two matrices on the CPU, for the bindings.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace rnnfast {

// a [M, K] · b [K, N] of float32 or float64, with `row` [N] added to each row; or into += a · b.
at::Tensor product(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& row,
                   const std::optional<at::Tensor>& into);

}  // namespace rnnfast
