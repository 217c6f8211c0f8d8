// Whether a tensor's elements fill a piece of memory, in whatever order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace rnnfast {

inline bool is_contiguous(const int64_t* sizes, const int64_t* strides, int64_t dims) {
  int64_t expected = 1;
  bool dense = true;
  for (int64_t d = dims - 1; d >= 0; --d) {
    if (sizes[d] == 0) return true;
    if (sizes[d] != 1 && strides[d] != expected) dense = false;
    expected *= sizes[d];
  }
  return dense;
}

// No gaps, and no element twice.
inline bool is_dense(const int64_t* sizes, const int64_t* strides, int64_t dims) {
  if (is_contiguous(sizes, strides, dims)) return true;
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t d = 0; d < dims; ++d)
    if (sizes[d] != 1) axes.push_back({strides[d], sizes[d]});
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : axes) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

}  // namespace rnnfast
