// Which instruction set runs here.
#include "cpu/capability.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace rnnfast::cpu {
namespace {

#if defined(__x86_64__)

// That the processor has tiles and multiplies bfloat16 by them, and that the system keeps them when
// it switches threads.
bool has_amx() {
  constexpr unsigned kXsave = 1u << 27, kBfloat16 = 1u << 22, kTile = 1u << 24;
  constexpr unsigned kTileState = 3u << 17;  // configuration and data
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kXsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBfloat16) || !(d & kTile)) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState;
}

// Linux gives room for tiles to processes that ask for it.
bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

struct Candidate {
  const char* name;
  const Kernels* kernels;
  const NarrowKernels<BFloat16, BFloat16>* dots;
  bool present, tiles;
};

// Why AMX, which the processor has, is not used; or null.
const char* why_no_tiles(const Processor& processor) {
  if (!processor.compiled_tiles) return "the compiler of this build did not know it";
  if (!processor.may_use_tiles()) return "the system does not let this process use it";
  if (!processor.right_tiles()) return "its numbers are not those of its emulation";
  return nullptr;
}

}  // namespace

Processor Processor::here() {
  Processor found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
  found.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  found.avx512_bf16 = found.avx512 && __builtin_cpu_supports("avx512bf16");
  found.amx = found.avx512_bf16 && has_amx();
  found.compiled_tiles = tiles_amx.forward != nullptr;
  found.may_use_tiles = &request_tiles, found.right_tiles = &tiles_agree;
#endif
  return found;
}

Kernels choose(const std::string& asked, const Processor& processor) {
#if defined(__x86_64__)
  const Candidate candidates[] = {
      {"amx", &kernels_avx512, &tiles_amx, processor.amx, true},
      {"avx512_bf16", &kernels_avx512, &dots_avx512, processor.avx512_bf16, false},
      {"avx512", &kernels_avx512, nullptr, processor.avx512, false},
      {"avx2", &kernels_avx2, nullptr, processor.avx2, false},
      {"baseline", &kernels_baseline, nullptr, true, false}};
#else
  const Candidate candidates[] = {{"baseline", &kernels_baseline, nullptr, true, false}};
#endif
  const char* refused = nullptr;
  std::string known;
  for (const Candidate& candidate : candidates) {
    const std::string name = candidate.name;
    known += (known.empty() ? "" : ", ") + name;
    if (!asked.empty() && asked != name) continue;
    if (!candidate.present && asked.empty()) continue;
    const std::string setting = "RNNFAST_CPU_CAPABILITY=" + name + ": ";
    if (!candidate.present) throw std::runtime_error(setting + "this processor has no " + name);
    if (candidate.tiles) {
      refused = why_no_tiles(processor);
      if (refused && !asked.empty()) throw std::runtime_error(setting + refused);
      if (refused) continue;
    }
    Kernels kernels = *candidate.kernels;
    kernels.dots = candidate.dots, kernels.tiles = candidate.tiles;
    kernels.why_no_tiles = refused;
    return kernels;
  }
  throw std::runtime_error("RNNFAST_CPU_CAPABILITY=" + asked + " is none of: " + known);
}

const Kernels& kernels() {
  static const Kernels chosen = [] {
    const char* asked = std::getenv("RNNFAST_CPU_CAPABILITY");
    return choose(asked ? asked : "", Processor::here());
  }();
  return chosen;
}

}  // namespace rnnfast::cpu
