// The ops of csrc/clip/cuda.h.
#pragma once

#include <optional>
#include <vector>

#include "ops/tensors.h"

namespace rnnfast::ops {

// The norm of all tensors, p > 0, 0-dim of the dtype that theirs are promoted to, or if `wide` of
// float64. With `max_norm` the tensors are scaled too. Nothing, and nothing is touched, where torch
// would raise for an empty tensor, or where tensors with gaps share memory.
Optional cuda_clip_norm(std::vector<Tensor> tensors, double p, bool wide,
                        std::optional<double> max_norm);

// Multiplies by min(1, max_norm / (norm + 1e-6)), norm 0-dim, on any device. False, and nothing is
// touched, where tensors with gaps share memory.
bool cuda_clip_scale(std::vector<Tensor> tensors, Tensor norm, double max_norm);

// Clamps to [-bound, bound]; else alike.
bool cuda_clip_value(std::vector<Tensor> tensors, double bound);

}  // namespace rnnfast::ops
