// Memory that a thread's calls share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

namespace rnnfast {

// At least `bytes`, for one call after the other: fresh pages cost more than packing a small
// layer's weights. Keep it while it is used.
inline at::Tensor scratch(int64_t bytes) {
  static thread_local at::Tensor kept;
  if (!kept.defined() || kept.numel() < bytes) {
    kept = at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
  }
  return kept;
}

}  // namespace rnnfast
