// A large product among threads: how its result is shared, and what it needs to run.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/crowd.h"
#include "cpu/kernels.h"

namespace rnnfast::cpu {

// Parts of C for at most n threads, as little as can be for the one that has most.
template <class S>
void split(Gemm<S>& g, int n) {
  constexpr double kLeastWork = 1e5;  // multiply-adds that are worth a thread
  const GemmGrain grain = kernels().gemm_grain(sizeof(S));
  const auto parts = [](int64_t size, int64_t grain, int64_t n) {
    const int64_t grains = (size + grain - 1) / grain;
    return (grains + n - 1) / n * grain;
  };
  n = static_cast<int>(std::min<double>(n, 1 + double(g.M) * g.N * g.K / kLeastWork));
  int64_t least = -1;
  for (int rows = n; rows >= 1; --rows) {
    if (n % rows != 0) continue;
    const int64_t most = parts(g.M, grain.rows, rows) * parts(g.N, grain.columns, n / rows);
    if (least >= 0 && most >= least) continue;
    least = most;
    g.split = {rows, n / rows};
  }
}

inline GemmTimes call(const Gemm<float>& g) { return kernels().gemm_f32(g); }
inline GemmTimes call(const Gemm<double>& g) { return kernels().gemm_f64(g); }

// Whether threads waited for one another so long that others must have their processors.
inline void note_waiting(const GemmTimes& times) {
  constexpr int64_t kPatience = 8000000;  // nanoseconds
  if (times.waited > kPatience && times.waited > 3 * times.own) crowd().seen();
}

// g, on at most n threads, where everything but its split and workspace is set. scratch(bytes)
// returns memory.
template <class S, class Scratch>
void multiply(Gemm<S> g, int n, const Scratch& scratch) {
  split(g, crowd().known() ? 1 : n);
  const int64_t room = kernels().gemm_room(sizeof(S)) * g.split.rows * g.split.columns + 64;
  const auto begin = reinterpret_cast<uintptr_t>(scratch(room));
  g.workspace = reinterpret_cast<void*>((begin + 63) & ~uintptr_t(63));
  note_waiting(call(g));
}

}  // namespace rnnfast::cpu
