// A large product among threads: how its result is shared, and what it needs to run.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/crowd.h"
#include "cpu/kernels.h"
#include "scan/plan.h"

namespace rnnfast::cpu {

// Of n threads those for so many multiply-adds of numbers of `width` bytes: each has to have some,
// and in a crowd one makes what is small.
inline int product_threads(int n, double multiply_adds, int width) {
  constexpr double kLeastWork = 1e5;  // that is worth a thread
  n = static_cast<int>(std::min<double>(n, 1 + multiply_adds / kLeastWork));
  return crowd().threads(n, product_ns(multiply_adds, width, kernels().vector_bytes));
}

// Parts of C for at most n threads, as little as can be for the one that has most.
template <class A, class B>
void split(Gemm<A, B>& g, int n) {
  const GemmGrain grain = kernels().gemm_grain(sizeof(Wide<A>));
  const auto parts = [](int64_t size, int64_t grain, int64_t n) {
    const int64_t grains = (size + grain - 1) / grain;
    return (grains + n - 1) / n * grain;
  };
  n = product_threads(n, double(g.M) * g.N * g.K, sizeof(Wide<A>));
  int64_t least = -1;
  for (int rows = n; rows >= 1; --rows) {
    if (n % rows != 0) continue;
    const int64_t most = parts(g.M, grain.rows, rows) * parts(g.N, grain.columns, n / rows);
    if (least >= 0 && most >= least) continue;
    least = most;
    g.split = {rows, n / rows};
  }
}

// The function for products of these types. Of two in bfloat16, of pairs where the processor has
// them.
template <class A, class B>
auto product_of(const Kernels& k) {
  if constexpr (std::is_same_v<A, BFloat16>) {
    return k.dots ? k.dots->gemm : k.bf16.gemm;
  } else if constexpr (std::is_same_v<A, Half>) {
    return k.f16.gemm;
  } else if constexpr (std::is_same_v<B, BFloat16>) {
    return k.bf16.gemm_back;
  } else if constexpr (std::is_same_v<B, Half>) {
    return k.f16.gemm_back;
  } else if constexpr (std::is_same_v<A, float>) {
    return k.gemm_f32;
  } else {
    return k.gemm_f64;
  }
}

// g, on at most n threads, where everything but its split and workspace is set. scratch(bytes)
// returns memory.
template <class A, class B, class Scratch>
void multiply(Gemm<A, B> g, int n, const Scratch& scratch) {
  split(g, n);
  const int64_t room = kernels().gemm_room(sizeof(Wide<A>)) * g.split.rows * g.split.columns + 64;
  const auto begin = reinterpret_cast<uintptr_t>(scratch(room));
  g.workspace = reinterpret_cast<void*>((begin + 63) & ~uintptr_t(63));
  product_of<A, B>(kernels())(g);
}

}  // namespace rnnfast::cpu
