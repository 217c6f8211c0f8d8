// A scan as the ops of the CUDA kernels hand it to a strategy: tensors that are checked, dense and
// aligned. An empty one is one that the cell, or the call, does not have.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cells/list.h"
#include "cuda/team/sequence.h"
#include "ops/tensors.h"

namespace rnnfast::ops {

using Tensors = std::vector<Tensor>;
using Optionals = std::vector<Optional>;

struct Sizes {
  const CellInfo* cell;
  ScalarType dtype;
  int64_t T, B, H, P;
};

// As cuda/device/arguments.h has it.
struct CarriedTensors {
  Optional h, c;
};

// Shapes as in cuda/device/arguments.h and, of projected cells, cuda/stepwise/arguments.h.
struct ForwardTensors {
  Optional gates, w_hh, w_hr, h0, c0;
  Optional y, h_last, c_last, c, every_m;  // out
  CarriedTensors before, after;
  bool reverse = false;
};

struct BackwardTensors {
  Optional saved, y, c, w_hh, w_hr, h0, c0, dy, dc, dh_last, dc_last;
  Optional dgates, every_dh, dh0, dc0;  // out
  Optional c_before;
  CarriedTensors after, before;
  bool reverse = false;
};

struct ForwardScan {
  Sizes sizes;
  bool training;
  Optional lengths, resets;
  std::vector<ForwardTensors> directions;
};

struct BackwardScan {
  Sizes sizes;
  double clip;
  Optional lengths, resets, scale;
  std::vector<BackwardTensors> directions;
};

// One direction after the other, step by step: products by torch, the rest by
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

// Of any strategy. Both throw where there is no such kernel.
void run(const ForwardScan& scan, const Kernel& kernel);
void run(const BackwardScan& scan, const Kernel& kernel);

// --- the ops ------------------------------------------------------------------------------------

// (y, last h, last c, every c, every m), the last three for cells that have them.
using ForwardResult = std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors>;

// Overwrites `gates` [T, B, H, S] of each direction with what backward needs, if training. Every c
// if every_c, every m if training.
ForwardResult cuda_forward(std::string cell, std::string strategy, std::string math,
                           std::vector<int64_t> choice, Tensors gates, Tensors w_hh, Tensors w_hr,
                           Tensors h0, Tensors c0, Optional lengths, Optional resets,
                           std::vector<bool> reverse, bool training, bool every_c);

// (D [T, B, H, S] times *scale, dh0, dc0, projected cells: the gradient of each h times *scale).
using BackwardResult = std::tuple<Tensors, Tensors, Tensors, Tensors>;

BackwardResult cuda_backward(std::string cell, std::string strategy, std::string math,
                             std::vector<int64_t> choice, Tensors saved, Tensors y, Tensors c,
                             Tensors w_hh, Tensors w_hr, Tensors h0, Tensors c0, Optional lengths,
                             Optional resets, std::vector<bool> reverse, Optionals dy, Optionals dc,
                             Tensors dh_last, Tensors dc_last, Optional scale, double clip);

// part.cpp
void cuda_forward_part(std::string cell, std::string strategy, std::string math,
                       std::vector<int64_t> choice, Tensor gates, Tensor w_hh, Tensor h0,
                       Optional c0, Optional lengths, Optional resets, bool training,
                       Tensors before, Tensor y, Tensor h_last, Optional c_last, Optional c,
                       Tensors after);
void cuda_backward_part(std::string cell, std::string strategy, std::string math,
                        std::vector<int64_t> choice, Optional saved, Tensor y, Optional c,
                        Tensor w_hh, Tensor h0, Optional c0, Optional lengths, Optional resets,
                        Optional dy, Tensor dh_last, Optional dc_last, double clip,
                        Optional c_before, Tensors after, Tensor dgates, Tensor dh0, Optional dc0,
                        Tensors before);

// Blocks of a team kernel that the device has at once, by its driver (resident.cpp).
int64_t cuda_room(std::string cell, std::string strategy, std::string math,
                  std::vector<int64_t> choice, bool backward, int64_t H, int64_t device);

// --- checks of an op's tensors, scan.cpp; they throw std::runtime_error --------------------------

// The index of its device, which must be one for these kernels.
int device_of(const char* name, const Tensor& tensor);

// Dense and 16-byte aligned, if need be by a copy. Of an optional one that is missing: nothing.
Tensor checked(const char* name, const Tensor& tensor, ScalarType dtype, const Shape& shape);
Optional checked(const char* name, const Optional& tensor, ScalarType dtype, const Shape& shape);

// The same, of one that is written: never a copy.
Tensor checked_out(const char* name, const Tensor& tensor, ScalarType dtype, const Shape& shape);

Sizes sizes_of(const std::string& cell, int64_t T, int64_t B, const Tensor& w_hh);

template <class V>
V* pointer(const Optional& tensor) {
  return tensor ? static_cast<V*>(const_cast<void*>(tensor->const_data_ptr())) : nullptr;
}

}  // namespace rnnfast::ops
