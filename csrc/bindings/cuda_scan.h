// A scan as the CUDA bindings hand it to a strategy: tensors that are checked, dense and aligned.
// An undefined tensor is one that the cell, or the call, does not have.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "cells/list.h"
#include "cuda/team/sequence.h"

namespace rnnfast {

struct Sizes {
  const CellInfo* cell;
  at::ScalarType dtype;
  int64_t T, B, H, P;
};

// As cuda/device/arguments.h has it.
struct CarriedTensors {
  at::Tensor h, c;
};

// Shapes as in cuda/device/arguments.h and, of projected cells, cuda/stepwise/arguments.h.
struct ForwardTensors {
  at::Tensor gates, w_hh, w_hr, h0, c0;
  at::Tensor y, h_last, c_last, c, every_m;  // out
  CarriedTensors before, after;
  bool reverse = false;
};

struct BackwardTensors {
  at::Tensor saved, y, c, w_hh, w_hr, h0, c0, dy, dc, dh_last, dc_last;
  at::Tensor dgates, every_dh, dh0, dc0;  // out
  at::Tensor c_before;
  CarriedTensors after, before;
  bool reverse = false;
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

// One direction after the other, step by step: products by ATen, the rest by
// cuda/stepwise/arguments.h.
void run_stepwise(const ForwardScan& scan);
void run_stepwise(const BackwardScan& scan);

// All directions in one launch of the kernel of this math and shape (cuda/solo/sequence.h).
void run_resident(const ForwardScan& scan, cuda::Math math, int shape);
void run_resident(const BackwardScan& scan, cuda::Math math, int shape);

// As run_resident, by a team of blocks (cuda/team/sequence.h).
void run_team(const ForwardScan& scan, const cuda::TeamChoice& choice);
void run_team(const BackwardScan& scan, const cuda::TeamChoice& choice);

// "stepwise", or the kernel of a math and choice: [shape], or of a "cluster" or "grid" [shape,
// blocks, teams, tiles].
struct Kernel {
  std::string strategy, math;
  std::vector<int64_t> choice;

  int number(size_t i) const { return static_cast<int>(choice.at(i)); }
};

// Of any strategy. Both throw ValueError where there is no such kernel.
void run(const ForwardScan& scan, const Kernel& kernel);
void run(const BackwardScan& scan, const Kernel& kernel);

// --- checks of an op's tensors, cuda_scan.cpp; they throw TypeError and ValueError ---------------

// Its device, which must be one for these kernels.
at::Device device_of(const char* name, const at::Tensor& tensor);

// Dense and 16-byte aligned, if need be by a copy. Of an optional one that is missing: undefined.
at::Tensor checked(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                   at::IntArrayRef shape);
at::Tensor checked(const char* name, const std::optional<at::Tensor>& tensor, at::ScalarType dtype,
                   at::IntArrayRef shape);

// The same, of one that is written: never a copy.
at::Tensor checked_out(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                       at::IntArrayRef shape);

Sizes sizes_of(const std::string& cell, int64_t T, int64_t B, const at::Tensor& w_hh);

// What is computed, and cell states are kept, in.
inline at::ScalarType wide(at::ScalarType dtype) {
  return dtype == at::kDouble ? dtype : at::kFloat;
}

template <class V>
V* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<V*>(tensor.data_ptr()) : nullptr;
}

}  // namespace rnnfast
