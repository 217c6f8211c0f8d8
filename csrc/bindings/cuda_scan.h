// A scan as the CUDA bindings hand it to a strategy: tensors that are checked, dense and aligned.
// An undefined tensor is one that the cell, or the call, does not have.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cells/list.h"
#include "cuda/team_sequence.h"

namespace rnnfast {

struct Sizes {
  const CellInfo* cell;
  at::ScalarType dtype;
  int64_t T, B, H, P;
};

// Shapes as in cuda/arguments.h and, of projected cells, cuda/stepwise.h.
struct ForwardTensors {
  at::Tensor gates, w_hh, w_hr, h0, c0;
  at::Tensor y, h_last, c_last, c, every_m;  // out
  bool reverse;
};

struct BackwardTensors {
  at::Tensor saved, y, c, w_hh, w_hr, h0, c0, dy, dc, dh_last, dc_last;
  at::Tensor dgates, every_dh, dh0, dc0;  // out
  bool reverse;
};

struct ForwardScan {
  Sizes sizes;
  bool training;
  at::Tensor lengths, resets;
  std::vector<ForwardTensors> directions;
};

struct BackwardScan {
  Sizes sizes;
  double clip;
  at::Tensor lengths, resets, scale;
  std::vector<BackwardTensors> directions;
};

// One direction after the other, step by step: products by ATen, the rest by cuda/stepwise.h.
void run_stepwise(const ForwardScan& scan);
void run_stepwise(const BackwardScan& scan);

// All directions in one launch of the kernel of this math and shape (cuda/sequence.h).
void run_resident(const ForwardScan& scan, cuda::Math math, int shape);
void run_resident(const BackwardScan& scan, cuda::Math math, int shape);

// As run_resident, by a team of blocks (cuda/team_sequence.h).
void run_team(const ForwardScan& scan, const cuda::TeamChoice& choice);
void run_team(const BackwardScan& scan, const cuda::TeamChoice& choice);

template <class V>
V* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<V*>(tensor.data_ptr()) : nullptr;
}

}  // namespace rnnfast
