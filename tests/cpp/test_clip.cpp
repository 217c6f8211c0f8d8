// Norm, scale and clamp on the host, with every set of kernels that this processor has.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "clip/cpu.h"
#include "cpu_scan.h"

namespace {

using namespace rnnfast;
using cpu::Axis;
using cpu::Chunk;
using cpu::ClipKernels;
using cpu::Gradient;
using cpu::NormType;
using cpu::Partial;

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<const ClipKernels*> present() {
  std::vector<const ClipKernels*> found;
  for (const cpu::Kernels* kernels : cpu_scan::present()) {
    const std::string isa = kernels->isa;
#if defined(__x86_64__)
    found.push_back(isa == "avx512" ? &cpu::clip_avx512
                    : isa == "avx2" ? &cpu::clip_avx2
                                    : &cpu::clip_baseline);
#else
    found.push_back(&cpu::clip_baseline);
#endif
  }
  return found;
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> found(count);
  for (int64_t i = 0; i < count; ++i) found[i] = static_cast<float>((i * 37 % 101) - 50) / 16;
  return found;
}

double norm_of(const std::vector<float>& x, double p) {
  long double sum = 0;
  for (const float v : x) {
    sum = p == kInf ? std::fmax(sum, std::fabs(v)) : sum + std::pow(std::fabs((long double)v), p);
  }
  return p == kInf ? sum : std::pow(sum, 1 / (long double)p);
}

}  // namespace

TEST(norms_of_every_size) {
  for (const ClipKernels* kernels : present()) {
    for (const int64_t size : {1, 3, 4, 15, 16, 17, 127, 128, 129, 1000, 16384}) {
      std::vector<float> x = numbers(size);
      const Gradient g{x.data(), DType::kFloat32, size, {}};
      for (const double p : {1.0, 2.0, 3.0, 0.5, kInf}) {
        const NormType type = NormType::of(p);
        const double norm = combine({kernels->reduce({&g, 0, size}, type)}, type);
        CHECK_NEAR(norm / norm_of(x, p), 1, 1e-6);
      }
    }
  }
}

TEST(elements_with_gaps) {
  for (const ClipKernels* kernels : present()) {
    std::vector<float> memory(7 * 5 * 6, 1e30f);  // [7, 5, 6], of which [:, 1:4, ::2]
    Gradient g{memory.data() + 6, DType::kFloat32, 7 * 3 * 3, {{7, 30}, {3, 6}, {3, 2}}};
    for (int i = 0; i < 7 * 9; ++i) memory[6 + i / 9 * 30 + i / 3 % 3 * 6 + i % 3 * 2] = 2;
    const NormType one = NormType::of(1);
    double total = 0;
    for (int64_t at = 0; at < g.size; at += 10) {
      const Chunk chunk{&g, at, std::min<int64_t>(10, g.size - at)};
      total += kernels->reduce(chunk, one).sum;
      kernels->scale(chunk, 0.5);
      kernels->clamp(chunk, 0.75);
    }
    CHECK(total == 126);
    int changed = 0;
    for (const float v : memory) {
      changed += v == 0.75f;
      CHECK(v == 0.75f || v == 1e30f);
    }
    CHECK(changed == 63);
  }
}

TEST(sums_beyond_the_range) {
  for (const ClipKernels* kernels : present()) {
    for (const double size : {1e20, 1e160, 1e300, 1.2e154, 1e-200}) {
      std::vector<double> x(1000, size);
      const Gradient g{x.data(), DType::kFloat64, 1000, {}};
      for (const double p : {2.0, 3.0}) {
        if (size < 1 && p == 2) continue;  // squares that are too small are 0, as in torch
        const NormType type = NormType::of(p);
        const Partial half = kernels->reduce({&g, 0, 500}, type);
        const double norm = combine({half, {1, 1}, half}, type);
        const double want = size < 1 ? 1 : size * std::pow(1000.0, 1 / p);
        CHECK_NEAR(norm / want, 1, 1e-12);
      }
    }
  }
}

TEST(lists_that_share_memory) {
  std::vector<float> x(100);
  const Gradient whole{x.data(), DType::kFloat32, 100, {}};
  const Gradient low{x.data(), DType::kFloat32, 50, {}};
  const Gradient high{x.data() + 50, DType::kFloat32, 50, {}};
  const Gradient every_second{x.data(), DType::kFloat32, 26, {{26, 2}}};  // ends at 50
  const Gradient nothing{x.data() + 20, DType::kFloat32, 0, {}};
  CHECK(cpu::may_overlap({high, whole}));
  CHECK(cpu::may_overlap({low, low}));
  CHECK(cpu::may_overlap({high, every_second}));
  CHECK(!cpu::may_overlap({high, low, nothing}));
}

TEST(the_order_of_chunks_is_that_of_the_list_for_any_number_of_threads) {
  std::vector<float> a = numbers(900000), b = numbers(7);
  const std::vector<Gradient> list = {{a.data(), DType::kFloat32, 900000, {}},
                                      {b.data(), DType::kFloat32, 7, {}}};
  const cpu::ChunkList chunks(list);
  const double norm = chunks.norm(NormType::of(2), 1);
  for (const int threads : {2, 3, 5}) CHECK(chunks.norm(NormType::of(2), threads) == norm);
  const std::vector<float> before = a;
  chunks.scale(0.25, 3);
  for (size_t i = 0; i < a.size(); ++i) CHECK(a[i] == before[i] / 4);
}
