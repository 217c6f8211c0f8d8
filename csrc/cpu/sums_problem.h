// Sums over all steps and sequences of gradients times what they multiplied: the gradients of a
// scan's weights. As the kernels of every instruction set are given them.
#pragma once

#include <cstdint>

namespace rnnfast::cpu {

constexpr int kMostOperands = 16, kMostGradients = 32;

// What a product of the scan multiplied: [T, B, N], rows contiguous. Where `initial` [B, N] is not
// null, `values` are the states that steps made, and each step multiplied that of the one before;
// their rows, and those of `initial`, follow one another `row` apart.
template <class S>
struct SumOperand {
  const S* values = nullptr;
  int64_t N = 0, step = 0, row = 0;  // from one t, and one b, to the next
  const S* initial = nullptr;
};

// Where a product [M, N] goes, whose rows lie `row` apart; or null.
template <class S>
struct SumProduct {
  S* to = nullptr;
  int64_t row = 0;
};

// Gradients [T, B, M], of which rows lie `row` apart, and where their sums go.
template <class S>
struct SumGradients {
  const S* values = nullptr;
  int64_t row = 0, M = 0;
  SumProduct<S> products[kMostOperands];  // of each operand
  S* biases[2] = {};                      // [M], the sums of the gradients themselves, or null
};

// S is float or double.
template <class S>
struct Sums {
  int64_t T = 0, B = 0;
  bool reverse = false;
  const int64_t* lengths = nullptr;  // [B] or null
  const bool* resets = nullptr;      // [T, B] or null
  int operand_count = 0, gradient_count = 0;
  SumOperand<S> operands[kMostOperands];
  SumGradients<S> gradients[kMostGradients];
  int threads = 1;
  void* workspace = nullptr;  // Kernels::sums_room() bytes, 64-byte aligned
};

}  // namespace rnnfast::cpu
