// The stepwise strategy: each product of a step is one with the weights, which the caller makes
// (bindings/cuda_stepwise.cpp, by ATen), and the fused kernels here around them. It serves every
// cell, size and storage dtype S: Bf16, F16, float, double. W is what S is computed in: double for
// double, else float.
//
// Forward                                        Backward, step = T-1 … 0
//   start                                          for phase = last … 0:
//   for step = 0 … T-1:                              phase
//     for phase = 0 … last:                          product[phase] = operand[phase]·weights
//       product[phase] = operand[phase]·weightsᵀ   finish, step = -1
//       phase
//
// The weights of a phase are the rows of W_hh of its gates, or W_hr.
//
// A step is one of each sequence: step k of a reversed sequence is its k-th from its own end. In
// steps past its end a sequence writes the zeros of the padding.
#pragma once

#include <cstdint>

#include "cells/list.h"
#include "cuda/device/storage.h"
#include "cuda/device/stream.h"

namespace rnnfast::cuda {

inline constexpr int kStepwisePhases = 2;  // at most

// Tensors are dense, row-major, in the storage dtype unless said otherwise; P width of h, H where
// the cell is not projected; S slots (layout.h), G gates.
struct StepwiseForward {
  int64_t T = 0, B = 0, H = 0, P = 0, step = 0;
  bool training = false, reverse = false;
  const int64_t* lengths = nullptr;  // [B], or null: all T
  const bool* resets = nullptr;      // [T, B], or null
  void* gates =
      nullptr;  // [T, B, H, S]: the input's part in; out, if training, what backward needs
  const void* h0 = nullptr;  // [B, P]
  const void* c0 = nullptr;  // [B, H], cells with a cell state
  void* y = nullptr;         // [T, B, P], out; 0 past a sequence's end
  void* c = nullptr;         // [T, B, H] W, out, or null: not wanted; 0 past the end
  void* h_last = nullptr;    // [B, P], out
  void* c_last = nullptr;    // [B, H], out
  // What each phase multiplies: h [B, P], 0 where the step resets; then the value beside the gates
  // [B, H].
  void* operand[kStepwisePhases] = {};
  const void* product[kStepwisePhases] = {};  // [B, n·H], n gates; of W_hr [B, P]
  void* h_state = nullptr;                    // [B, H] W, cells that read h
  void* c_state = nullptr;                    // [B, H] W, cells with a cell state
  void* every_m =
      nullptr;  // [T, B, H], projected, out, if training: W_hr's operand; 0 past the end
};

struct StepwiseBackward {
  int64_t T = 0, B = 0, H = 0, P = 0, step = 0;
  bool reverse = false;
  const int64_t* lengths = nullptr;
  const bool* resets = nullptr;
  const void* saved = nullptr;  // [T, B, H, S], forward's gates; null where y is all
  const void* y = nullptr;      // [T, B, P]
  const void* c = nullptr;      // [T, B, H] W
  const void* h0 = nullptr;     // [B, P]
  const void* c0 = nullptr;     // [B, H]
  const void* dy = nullptr;     // [T, B, P], or null: 0
  const void* dc = nullptr;     // [T, B, H], gradient of every c; or null: 0
  void* dgates = nullptr;       // [T, B, H, S], out: D of layout.h times *scale; 0 past the end
  void* every_dh =
      nullptr;  // [T, B, P], projected, out: gradient of each h times *scale; 0 past the end
  void* dh0 = nullptr;           // [B, P], out
  void* dc0 = nullptr;           // [B, H], out
  const float* scale = nullptr;  // as in BackwardArgs (device/arguments.h)
  double clip = 0;               // as in BackwardArgs
  void* dh_state =
      nullptr;  // [B, P] W, begins as the gradient of the last h: the part outside the product
  void* dc_state = nullptr;                   // [B, H] W, begins as the gradient of the last c
  void* operand[kStepwisePhases] = {};        // gradients of forward's products, times *scale
  const void* product[kStepwisePhases] = {};  // and of its operands
};

// The kernels' launches for storage dtype S. Each throws std::runtime_error where the launch fails.
template <class S>
struct Stepwise {
  static void start(const StepwiseForward& f, Stream stream);
  static void phase(CellId cell, int phase, const StepwiseForward& f, Stream stream);

  static void phase(CellId cell, int phase, const StepwiseBackward& g, Stream stream);
  static void finish(const StepwiseBackward& g, Stream stream);
};

extern template struct Stepwise<Bf16>;
extern template struct Stepwise<F16>;
extern template struct Stepwise<float>;
extern template struct Stepwise<double>;

}  // namespace rnnfast::cuda
