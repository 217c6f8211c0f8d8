// The measures of the resident kernels, of one block or a team, in plain C++: for the plan, the
// launchers, the tests and the kernels themselves.
//
// A block has 8 warps; it computes 8 sequences at once. A *tile* is 16 rows of the resident matrix,
// a *slab* 64 bytes of its columns: 32 16-bit or 16 32-bit values. A warp holds a slab of a tile in
// 8 registers a thread, or in 1 KB of shared memory.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "cells/step.h"

namespace rnnfast::cuda {

enum class Pass { kForward, kBackward };

// How the product is computed: tensor cores on 16-bit or tf32 operands, or FFMA in full fp32. Sums
// are fp32.
enum class Math { kBf16, kF16, kTf32, kFp32 };

inline constexpr std::pair<Math, std::string_view> kMaths[] = {
    {Math::kBf16, "bf16"}, {Math::kF16, "fp16"}, {Math::kTf32, "tf32"}, {Math::kFp32, "fp32"}};

inline std::string_view name_of(Math math) {
  for (const auto& [one, name] : kMaths) {
    if (one == math) return name;
  }
  throw std::invalid_argument("not a Math");
}

inline Math math_by_name(std::string_view name) {
  for (const auto& [math, own] : kMaths) {
    if (own == name) return math;
  }
  throw std::invalid_argument("no math is called '" + std::string(name) + "'");
}

inline constexpr int kWarps = 8;
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kColumns = 8;  // sequences of a block
inline constexpr int kSlabBytes = 64;
inline constexpr int kSlabWords = 8;  // registers a thread
inline constexpr int kSlabShared =
    32 * 4 * kSlabWords;            // bytes of a slab of a tile, as a warp holds it
inline constexpr int kRowPad = 16;  // bytes after a row of operands: no bank conflict

constexpr int operand_bytes(Math math) { return math == Math::kBf16 || math == Math::kF16 ? 2 : 4; }
constexpr int slab_values(Math math) { return kSlabBytes / operand_bytes(math); }

namespace detail {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace detail

// What the kernels that keep the weights can compute: one phase, or two of two gates and one.
template <class C>
constexpr bool may_be_resident() {
  const Phase& last = C::kPhases[kGatePhases<C> - 1];
  return !kProjected<C> &&
         (kGatePhases<C> == 1 || (kGatePhases<C> == 2 && C::kStates == 1 && C::kGates == 3 &&
                                  last.gates == 1 && last.grads == bits(1, 2)));
}

}  // namespace rnnfast::cuda
