// The stepwise strategy: a step is one product with the recurrent weights, which the caller makes
// (bindings/cuda_stepwise.cpp, by ATen), and the fused kernels here around it. It serves every
// cell, size and storage dtype S: Bf16, F16, float, double. W is what S is computed in: double for
// double, else float.
//
// Forward                                    Backward, step = T-1 … 0
//   start                                      one-phase:    step;  product = operand·W_hh
//   for step = 0 … T-1:                        two-phase:    candidate;  du =
//   candidate_operand·W_hn;
//     product = operand·W_hhᵀ                                step;  product = operand·W_h,rz
//     one-phase:  step                         projected:    unproject;  dm = h_operand·W_hr;
//     two-phase:  reset;                                     step;  product = operand·W_hh
//                 candidate = u·W_hnᵀ;  step   finish, step = -1
//     projected:  step;
//                 projected = m·W_hrᵀ;  project
//
// A step is one of each sequence: step k of a reversed sequence is its k-th from its own end. In
// steps past its end a sequence writes the zeros of the padding.
#pragma once

#include <cstdint>

#include "cells/list.h"
#include "cuda/device/storage.h"
#include "cuda/device/stream.h"

namespace rnnfast::cuda {

// Tensors are dense, row-major, in the storage dtype unless said otherwise; P width of h, H where
// the cell is not projected; S slots (layout.h), G gates.
struct StepwiseForward {
  int64_t T = 0, B = 0, H = 0, P = 0, step = 0;
  bool training = false, reverse = false;
  const int64_t* lengths = nullptr;  // [B], or null: all T
  const bool* resets = nullptr;      // [T, B], or null
  void* gates =
      nullptr;  // [T, B, H, S]: the input's part in; out, if training, what backward needs
  const void* h0 = nullptr;         // [B, P]
  const void* c0 = nullptr;         // [B, H], cells with a cell state
  void* y = nullptr;                // [T, B, P], out; 0 past a sequence's end
  void* c = nullptr;                // [T, B, H] W, out, or null: not wanted; 0 past the end
  void* h_last = nullptr;           // [B, P], out
  void* c_last = nullptr;           // [B, H], out
  void* operand = nullptr;          // [B, P]: h for the step's product, 0 where the step resets
  const void* product = nullptr;    // [B, G·H]; two-phase: [B, 2·H]
  void* h_state = nullptr;          // [B, H] W, cells that read h
  void* c_state = nullptr;          // [B, H] W, cells with a cell state
  void* u = nullptr;                // [B, H], two-phase
  const void* candidate = nullptr;  // [B, H], two-phase
  void* m = nullptr;                // [B, H], projected
  void* every_m = nullptr;          // [T, B, H], projected, out, if training; 0 past the end
  const void* projected = nullptr;  // [B, P], projected
};

struct StepwiseBackward {
  int64_t T = 0, B = 0, H = 0, P = 0, step = 0;
  bool reverse = false;
  const int64_t* lengths = nullptr;
  const bool* resets = nullptr;
  const void* saved = nullptr;  // [T, B, H, S], forward's gates; cells with one gate: null
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
  void* dc_state = nullptr;  // [B, H] W, begins as the gradient of the last c
  void* operand =
      nullptr;  // [B, G·H]; two-phase: [B, 2·H]; the gradients of the product times *scale
  const void* product = nullptr;      // [B, P]
  void* candidate_operand = nullptr;  // [B, H], two-phase
  const void* du = nullptr;           // [B, H], two-phase
  void* h_operand = nullptr;          // [B, P], projected
  const void* dm = nullptr;           // [B, H], projected
};

// The kernels' launches for storage dtype S. Each throws std::runtime_error where the launch fails.
template <class S>
struct Stepwise {
  static void start(const StepwiseForward& f, Stream stream);
  static void step(CellId cell, const StepwiseForward& f, Stream stream);
  static void reset(const StepwiseForward& f, Stream stream);
  static void project(const StepwiseForward& f, Stream stream);

  static void step(CellId cell, const StepwiseBackward& g, Stream stream);
  static void candidate(const StepwiseBackward& g, Stream stream);
  static void unproject(const StepwiseBackward& g, Stream stream);
  static void finish(const StepwiseBackward& g, Stream stream);
};

extern template struct Stepwise<Bf16>;
extern template struct Stepwise<F16>;
extern template struct Stepwise<float>;
extern template struct Stepwise<double>;

}  // namespace rnnfast::cuda
