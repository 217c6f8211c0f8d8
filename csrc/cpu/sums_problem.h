// Sums over all steps and sequences of gradients times what they multiplied: the gradients of a
// scan's weights. As the kernels of every instruction set are given them.
#pragma once

#include <cstdint>

#include "cpu/storage.h"

namespace rnnfast::cpu {

constexpr int kMostOperands = 16, kMostGradients = 32, kMostTerms = 4;

// What a product of the scan multiplied: [T, B, N], rows contiguous. Where `initial` [B, N] is not
// null, `values` are the states that steps made, and each step multiplied that of the one before;
// their rows, and those of `initial`, follow one another `row` apart.
template <class X>
struct SumRows {
  const X* values = nullptr;
  int64_t step = 0, row = 0;  // from one t, and one b, to the next
  const X* initial = nullptr;
};

// The same of a weight that multiplies several values in a step: its gradient is the sum of as many
// products, term by term. A term that an operand or a gradient lacks adds nothing.
template <class X>
struct SumOperand {
  int64_t N = 0;
  SumRows<X> terms[kMostTerms];
};

// Where a product [M, N] goes, whose rows lie `row` apart, and those of groups `group`; or null.
template <class S>
struct SumProduct {
  S* to = nullptr;
  int64_t row = 0, group = 0;
};

// Gradients [T, B, M], of which rows lie `row` apart.
template <class D>
struct SumValues {
  const D* values = nullptr;
  int64_t row = 0;
};

// Those of each term, and where their sums go.
template <class D>
struct SumGradients {
  using S = Wide<D>;
  int64_t M = 0;
  SumValues<D> terms[kMostTerms];
  SumProduct<S> products[kMostOperands];  // of each operand
  S* biases[2] = {};                      // [M], the sums of the first term itself, or null
  int64_t bias_group = 0;                 // from those of a group to the next one's
};

// Gradients are stored as D, and what they are multiplied with as X: one of float and double, or X
// in 16 bits and D as Backward has it. Where there are groups the batch is of so many parts, and each
// has sums of its own.
template <class D, class X = D>
struct Sums {
  int64_t T = 0, B = 0, groups = 0;
  bool reverse = false;
  const int64_t* lengths = nullptr;  // [B] or null
  const bool* resets = nullptr;      // [T, B] or null
  int operand_count = 0, gradient_count = 0, terms = 1;
  SumOperand<X> operands[kMostOperands];
  SumGradients<D> gradients[kMostGradients];
  int threads = 1;
  void* workspace = nullptr;  // Kernels::sums_room() bytes, 64-byte aligned
};

}  // namespace rnnfast::cpu
