// Norm, scale and clamp of a list of tensors on the host: what the kernels are given, and what they
// do. Plain C++, no torch. Compiled once for each instruction set (cpu_<isa>.cpp), like the scans.
//
// Tensors are cut into chunks of kChunk elements. A chunk is summed in fp32 (fp64 tensors: fp64),
// the chunks in fp64 in their own order, so the result does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "scan/problem.h"

namespace rnnfast::cpu {

struct Axis {
  int64_t size = 0, stride = 0;  // in elements
};

// Memory that a tensor occupies; the order of its elements is of no importance.
struct Gradient {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t size = 0;        // elements
  std::vector<Axis> axes;  // outermost first; empty: `size` elements one behind the other
};

// Elements begin .. begin + count of a tensor, in the order of its axes.
struct Chunk {
  const Gradient* of = nullptr;
  int64_t begin = 0, count = 0;
};

enum class NormKind { kTwo, kOne, kMax, kPower };

struct NormType {
  NormKind kind = NormKind::kTwo;
  double p = 2;

  static NormType of(double p);  // p > 0, infinity included
};

// Σ|x|^p of a chunk is scale^p · sum; for kMax, sum is the largest |x|. A NaN is kept.
struct Partial {
  double sum = 0, scale = 1;
};

struct ClipKernels {
  Partial (*reduce)(const Chunk&, const NormType&);
  void (*scale)(const Chunk&, double factor);
  void (*clamp)(const Chunk&, double bound);  // to [-bound, bound]; the upper bound wins
};

extern const ClipKernels clip_avx512, clip_avx2, clip_baseline;

constexpr int64_t kChunk = 16384;

// All chunks of a list of tensors, which must outlive it.
class ChunkList {
 public:
  explicit ChunkList(const std::vector<Gradient>& tensors);

  // The norm of all elements, in fp64: finite where all elements are finite, unless it is itself
  // beyond fp64.
  double norm(const NormType& type, int threads) const;
  // Multiplies in place; each thread its last chunk first, which its cache may still hold.
  void scale(double factor, int threads) const;
  void clamp(double bound, int threads) const;

 private:
  template <class Body>
  void each(int threads, bool backwards, const Body& body) const;

  std::vector<Chunk> chunks_;
  std::vector<int64_t> work_;  // of the chunks before each, and of all
};

// min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it; NaN is kept.
double clip_factor(double norm, double max_norm);

// The norm of everything from the partials of its chunks, in their order.
double combine(const std::vector<Partial>& partials, const NormType& type);

// Whether two of the tensors may share memory; then they have to be scaled one after the other.
bool may_overlap(const std::vector<Gradient>& tensors);

}  // namespace rnnfast::cpu
