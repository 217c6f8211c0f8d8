// Which instruction set runs here.
#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace rnnfast::cpu {
namespace {

struct Candidate {
  const char* name;
  const Kernels* kernels;
  bool present;
};

const Kernels& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const Candidate candidates[] = {{"avx512", &kernels_avx512, avx512},
                                  {"avx2", &kernels_avx2, avx2},
                                  {"baseline", &kernels_baseline, true}};
#else
  const Candidate candidates[] = {{"baseline", &kernels_baseline, true}};
#endif
  const char* asked = std::getenv("RNNFAST_CPU_CAPABILITY");
  const std::string name = asked ? asked : "";
  std::string known;
  for (const Candidate& candidate : candidates) {
    if (name.empty() && candidate.present) return *candidate.kernels;
    if (name == candidate.name && candidate.present) return *candidate.kernels;
    if (name == candidate.name)
      throw std::runtime_error("RNNFAST_CPU_CAPABILITY=" + name + ": this processor has no " +
                               name);
    known += (known.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::runtime_error("RNNFAST_CPU_CAPABILITY=" + name + " is none of: " + known);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace rnnfast::cpu
