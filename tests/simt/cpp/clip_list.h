// What the tests of the clip kernel run on: lists of tensors between guards, and one launch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "clip/cuda_kernel.h"
#include "toys.h"

namespace clip_list {

using namespace toys;
using rnnfast::DType;

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr int kChunk = 512;  // bytes: small, for many chunks from few elements

inline int bytes_of(DType dtype) {
  if (dtype == DType::kFloat64) return 8;
  return dtype == DType::kFloat32 ? 4 : 2;
}

// One tensor, `offset` elements off a 16-byte boundary, between elements that must stay as they
// are.
class Gradient {
 public:
  Gradient(DType dtype, const std::vector<double>& values, int offset = 0)
      : dtype_(dtype), size_(values.size()), offset_(16 / bytes_of(dtype) + offset) {
    memory_.assign((size_ + 2 * offset_ + 16) * bytes_of(dtype) / sizeof(ClipSum) + 2, {kMark, 0});
    for (size_t i = 0; i < size_; ++i) set(i, values[i]);
    before_ = this->values();
  }

  ClipTensor tensor() { return {at(0), static_cast<int64_t>(size_), dtype_}; }
  const std::vector<double>& before() const { return before_; }
  DType dtype() const { return dtype_; }

  std::vector<double> values() const {
    std::vector<double> found;
    for (size_t i = 0; i < size_; ++i) found.push_back(get(i));
    return found;
  }

  bool guards_hold() const {
    const auto* all = reinterpret_cast<const char*>(memory_.data());
    std::vector<ClipSum> fresh(memory_.size(), {kMark, 0});
    const auto* want = reinterpret_cast<const char*>(fresh.data());
    const size_t begin = offset_ * bytes_of(dtype_), end = begin + size_ * bytes_of(dtype_);
    return std::memcmp(all, want, begin) == 0 &&
           std::memcmp(all + end, want + end, memory_.size() * sizeof(ClipSum) - end) == 0;
  }

 private:
  static constexpr double kMark = -77;

  void* at(size_t i) const {
    return const_cast<char*>(reinterpret_cast<const char*>(memory_.data())) +
           (offset_ + i) * bytes_of(dtype_);
  }
  double get(size_t i) const {
    switch (dtype_) {
      case DType::kFloat32:
        return *static_cast<float*>(at(i));
      case DType::kFloat64:
        return *static_cast<double*>(at(i));
      case DType::kBFloat16:
        return to_float(*static_cast<Bf16*>(at(i)));
      case DType::kFloat16:
        return to_float(*static_cast<F16*>(at(i)));
    }
    return kNaN;
  }
  void set(size_t i, double value) {
    const auto single = static_cast<float>(value);
    if (dtype_ == DType::kFloat32) *static_cast<float*>(at(i)) = single;
    if (dtype_ == DType::kFloat64) *static_cast<double*>(at(i)) = value;
    if (dtype_ == DType::kBFloat16) *static_cast<Bf16*>(at(i)) = from_float<Bf16>(single);
    if (dtype_ == DType::kFloat16) *static_cast<F16*>(at(i)) = from_float<F16>(single);
  }

  DType dtype_;
  size_t size_;
  int offset_;
  std::vector<ClipSum> memory_;
  std::vector<double> before_;
};

using Gradients = std::vector<Gradient>;

inline std::vector<double> numbers(size_t count, double size = 1) {
  static uint32_t state = 1;
  std::vector<double> found(count);
  for (double& x : found) {
    state = state * 1664525u + 1013904223u;
    x = size * (state / 2147483648.0 - 1);
  }
  return found;
}

inline Gradients mixed() {
  Gradients g;
  g.emplace_back(DType::kFloat32, numbers(1000));
  g.emplace_back(DType::kBFloat16, numbers(777), 3);
  g.emplace_back(DType::kFloat64, numbers(65), 1);
  g.emplace_back(DType::kFloat16, numbers(2000), 5);
  g.emplace_back(DType::kFloat32, numbers(0));
  g.emplace_back(DType::kFloat32, numbers(1), 1);
  return g;
}

inline double norm_of(const Gradients& gradients, double p) {
  long double sum = 0;
  for (const Gradient& g : gradients) {
    for (const double x : g.before()) {
      sum = p == kInf ? std::max<long double>(sum, std::fabs(x))
                      : sum + std::pow(std::fabs(static_cast<long double>(x)), p);
    }
  }
  return p == kInf ? sum : std::pow(sum, 1 / static_cast<long double>(p));
}

// A launch and what it leaves.
struct Run {
  std::vector<ClipSum> sums;
  std::vector<unsigned> meet = {0, 0};
  double wide = -1;
  float rounded = -1;
  ClipTable table;
  ClipArgs args;
  int grid;

  Run(Gradients& gradients, double p, int task, double limit, int blocks = 5) : grid(blocks) {
    std::vector<ClipTensor> tensors;
    for (Gradient& g : gradients) tensors.push_back(g.tensor());
    table = make_clip_table(tensors, kChunk);
    args.chunks = table.chunks, args.chunk_bytes = kChunk;
    args.p = p, args.kind = clip_kind(p), args.task = task, args.limit = limit;
    args.entries = static_cast<int>(table.entries.size());
    if (args.entries <= kClipInline) {
      std::copy(table.entries.begin(), table.entries.end(), args.inlined);
    } else {
      args.table = table.entries.data();
    }
    sums.assign(grid, {kNaN, kNaN});
    args.sums = sums.data(), args.meet = meet.data();
    args.wide = &wide, args.given = &wide;
    args.result = &rounded, args.result_dtype = static_cast<int>(DType::kFloat32);
  }

  template <class Env>
  void with() {
    launch<ClipArgs>({"clip", grid, 1, kClipThreads, 0, true}, clip<Env>, args, nullptr);
  }
  void launch_it() { launch_clip(args, grid, nullptr); }
};

inline constexpr int kBoth = kClipNorm | kClipScale;

inline bool near_to(double a, double b, double share) {
  return a == b || (std::isnan(a) && std::isnan(b)) || std::fabs(a - b) <= share * std::fabs(b);
}

inline void check_scaled(const Gradients& gradients, double factor, const std::string& what) {
  for (const Gradient& g : gradients) {
    const double share = bytes_of(g.dtype()) == 2       ? 1e-2
                         : g.dtype() == DType::kFloat32 ? 1e-6
                                                        : 1e-14;
    const std::vector<double> after = g.values();
    for (size_t i = 0; i < after.size(); ++i) {
      const double want = g.before()[i] * factor;
      const bool close = near_to(after[i], want, share) || std::fabs(want - after[i]) < 1e-7;
      if (!close)
        CHECK_IN(close, what + ": " + check::show(after[i]) + ", not " + check::show(want));
    }
    CHECK_IN(g.guards_hold(), what);
  }
}

}  // namespace clip_list
