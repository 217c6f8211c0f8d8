#include "clip/cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace rnnfast::cpu {
namespace {

constexpr int64_t kOverhead = 64;                     // what a chunk costs beside its elements
constexpr int64_t kWorkOfAThread = int64_t(1) << 17;  // below, another thread does not pay

const ClipKernels& clip_kernels() {
#if defined(__x86_64__)
  const std::string isa = kernels().isa;
  static const ClipKernels& chosen = isa == "avx512" ? clip_avx512
                                     : isa == "avx2" ? clip_avx2
                                                     : clip_baseline;
  return chosen;
#else
  return clip_baseline;
#endif
}

int64_t element_bytes(DType dtype) {
  if (dtype == DType::kFloat64) return 8;
  return dtype == DType::kFloat32 ? 4 : 2;
}

double root(double x, const NormType& type) {
  if (type.kind == NormKind::kTwo) return std::sqrt(x);
  return type.kind == NormKind::kPower ? std::pow(x, 1 / type.p) : x;
}

}  // namespace

NormType NormType::of(double p) {
  if (p == 2) return {NormKind::kTwo, p};
  if (p == 1) return {NormKind::kOne, p};
  return {std::isinf(p) ? NormKind::kMax : NormKind::kPower, p};
}

ChunkList::ChunkList(const std::vector<Gradient>& tensors) {
  int64_t work = 0;
  work_.push_back(0);
  for (const Gradient& tensor : tensors) {
    for (int64_t begin = 0; begin < tensor.size; begin += kChunk) {
      chunks_.push_back({&tensor, begin, std::min(kChunk, tensor.size - begin)});
      work += chunks_.back().count + kOverhead;
      work_.push_back(work);
    }
  }
}

// body(index of a chunk), each thread its own range of about equal work, from its first or its
// last.
template <class Body>
void ChunkList::each(int threads, bool backwards, const Body& body) const {
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(backwards ? begin + end - 1 - i : i);
  };
  const int64_t total = work_.back();
  const auto count = static_cast<int64_t>(chunks_.size());
  const auto most = static_cast<int>(std::min<int64_t>(threads, total / kWorkOfAThread));
  if (most <= 1) return run(0, count);
  on_threads(most, [&](int64_t me, int64_t n) {
    const auto first_of = [&](int64_t thread) {
      const auto at = std::lower_bound(work_.begin(), work_.end(), total / n * thread);
      return thread == n ? count : static_cast<int64_t>(at - work_.begin());
    };
    run(first_of(me), first_of(me + 1));
  });
}

double ChunkList::norm(const NormType& type, int threads) const {
  std::vector<Partial> partials(chunks_.size());
  const auto reduce = clip_kernels().reduce;
  each(threads, false, [&](int64_t i) { partials[i] = reduce(chunks_[i], type); });
  return combine(partials, type);
}

void ChunkList::scale(double factor, int threads) const {
  const auto kernel = clip_kernels().scale;
  each(threads, true, [&](int64_t i) { kernel(chunks_[i], factor); });
}

void ChunkList::clamp(double bound, int threads) const {
  const auto kernel = clip_kernels().clamp;
  each(threads, false, [&](int64_t i) { kernel(chunks_[i], bound); });
}

double clip_factor(double norm, double max_norm) {
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1 ? 1 : factor;
}

double combine(const std::vector<Partial>& partials, const NormType& type) {
  double total = 0;
  if (type.kind == NormKind::kMax) {
    for (const Partial& p : partials) {
      if (!(p.sum <= total)) total = p.sum;
      if (std::isnan(total)) return total;
    }
    return total;
  }
  bool as_it_is = true;
  for (const Partial& p : partials) {
    total += p.sum;
    as_it_is = as_it_is && p.scale == 1;
  }
  if (std::isnan(total) || (as_it_is && std::isfinite(total))) return root(total, type);
  // relative to the largest chunk's norm, so that no power overflows
  double largest = 0;
  for (const Partial& p : partials) largest = std::fmax(largest, p.scale * root(p.sum, type));
  if (std::isinf(largest)) return largest;
  total = 0;
  for (const Partial& p : partials) {
    total += std::pow(p.scale * root(p.sum, type) / largest, type.p);
  }
  return largest * root(total, type);
}

bool may_overlap(const std::vector<Gradient>& tensors) {
  std::vector<std::pair<const char*, const char*>> extents;
  extents.reserve(tensors.size());
  for (const Gradient& tensor : tensors) {
    if (tensor.size == 0) continue;
    int64_t last = tensor.size - 1;
    if (!tensor.axes.empty()) {
      last = 0;
      for (const Axis& axis : tensor.axes) last += (axis.size - 1) * axis.stride;
    }
    const char* begin = static_cast<const char*>(tensor.data);
    extents.emplace_back(begin, begin + (last + 1) * element_bytes(tensor.dtype));
  }
  std::sort(extents.begin(), extents.end());
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].first < extents[i - 1].second) return true;
  }
  return false;
}

}  // namespace rnnfast::cpu
