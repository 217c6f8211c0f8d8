// Which instruction set runs here.
#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace rnnfast::cpu {
namespace {

struct Candidate {
  const char* name;
  const Kernels* kernels;
  const NarrowKernels<BFloat16, BFloat16>* dots;
  bool present;
};

Kernels of(const Candidate& candidate) {
  Kernels kernels = *candidate.kernels;
  kernels.dots = candidate.dots;
  return kernels;
}

Kernels choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool dots = avx512 && __builtin_cpu_supports("avx512bf16");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const Candidate candidates[] = {{"avx512_bf16", &kernels_avx512, &dots_avx512, dots},
                                  {"avx512", &kernels_avx512, nullptr, avx512},
                                  {"avx2", &kernels_avx2, nullptr, avx2},
                                  {"baseline", &kernels_baseline, nullptr, true}};
#else
  const Candidate candidates[] = {{"baseline", &kernels_baseline, nullptr, true}};
#endif
  const char* asked = std::getenv("RNNFAST_CPU_CAPABILITY");
  const std::string name = asked ? asked : "";
  std::string known;
  for (const Candidate& candidate : candidates) {
    if (name.empty() && candidate.present) return of(candidate);
    if (name == candidate.name && candidate.present) return of(candidate);
    if (name == candidate.name)
      throw std::runtime_error("RNNFAST_CPU_CAPABILITY=" + name + ": this processor has no " +
                               name);
    known += (known.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::runtime_error("RNNFAST_CPU_CAPABILITY=" + name + " is none of: " + known);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace rnnfast::cpu
