// Sums over all steps and sequences of gradients times what they multiplied: the gradients of a
// scan's weights. As the kernels of every instruction set are given them.
#pragma once

#include <cstdint>

#include "cpu/storage.h"

namespace rnnfast::cpu {

constexpr int kMostOperands = 3, kMostGradients = 6;

// What a product of the scan multiplied: [T, B, N], rows contiguous. Where `initial` [B, N] is not
// null, `values` are the states that steps made, and each step multiplied that of the one before.
template <class X>
struct SumOperand {
  const X* values = nullptr;
  int64_t N = 0, step = 0, row = 0;  // from one t, and one b, to the next
  const X* initial = nullptr;
};

// Gradients [T, B, M], of which rows lie `row` apart, and where their sums go.
template <class D>
struct SumGradients {
  using S = Wide<D>;
  const D* values = nullptr;
  int64_t row = 0, M = 0;
  S* products[kMostOperands] = {};  // [M, N] of each operand, or null
  S* biases[2] = {};                // [M], the sums of the gradients themselves, or null
};

// Gradients are stored as D, and what they are multiplied with as X: one of float and double, or X
// in 16 bits and D as Backward has it.
template <class D, class X = D>
struct Sums {
  int64_t T = 0, B = 0;
  bool reverse = false;
  const int64_t* lengths = nullptr;  // [B] or null
  const bool* resets = nullptr;      // [T, B] or null
  int operand_count = 0, gradient_count = 0;
  SumOperand<X> operands[kMostOperands];
  SumGradients<D> gradients[kMostGradients];
  int threads = 1;
  void* workspace = nullptr;  // Kernels::sums_room() bytes, 64-byte aligned
};

}  // namespace rnnfast::cpu
