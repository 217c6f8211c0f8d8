#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "clip/cuda.h"
#include "clip/cuda_kernel.h"

namespace rnnfast::cuda {
namespace {

int64_t bytes_of(DType dtype) {
  if (dtype == DType::kFloat64) return 8;
  return dtype == DType::kFloat32 ? 4 : 2;
}

bool same(const ClipTensor& a, const ClipTensor& b) {
  return a.data == b.data && a.size == b.size && a.dtype == b.dtype;
}

}  // namespace

ClipTable make_clip_table(const std::vector<ClipTensor>& tensors, int64_t chunk_bytes) {
  ClipTable table;
  std::vector<ClipTensor> sorted;
  for (const ClipTensor& tensor : tensors) {
    if (tensor.size > 0) sorted.push_back(tensor);
  }
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.data < b.data; });
  const ClipTensor* before = nullptr;
  for (const ClipTensor& tensor : sorted) {
    if (before && same(*before, tensor)) {
      ClipEntry& entry = table.entries.back();
      if (entry.repeats == std::numeric_limits<uint16_t>::max()) {
        throw std::invalid_argument("a tensor is listed more than 65,535 times");
      }
      ++entry.repeats;
      continue;
    }
    if (before && static_cast<const char*>(before->data) + before->size * bytes_of(before->dtype) >
                      static_cast<const char*>(tensor.data)) {
      table.overlapping = true;
    }
    if (table.chunks > int64_t{std::numeric_limits<uint32_t>::max()}) {
      throw std::invalid_argument("more chunks than 32 bits count");
    }
    table.entries.push_back({tensor.data, tensor.size, static_cast<uint32_t>(table.chunks),
                             static_cast<uint16_t>(tensor.dtype), 1});
    const int64_t each = chunk_bytes / bytes_of(tensor.dtype);
    table.chunks += (tensor.size + each - 1) / each;
    before = &tensor;
  }
  return table;
}

ClipKind clip_kind(double p) {
  if (p == 2) return ClipKind::kTwo;
  if (p == 1) return ClipKind::kOne;
  return std::isinf(p) ? ClipKind::kMax : ClipKind::kPower;
}

int clip_grid(int64_t chunks, int sm_count, int blocks_per_sm) {
  const int64_t most = int64_t{sm_count} * std::max(blocks_per_sm, 1);
  return static_cast<int>(std::max<int64_t>(1, std::min(chunks, most)));
}

void launch_clip(const ClipArgs& args, int grid, Stream stream) {
  Launch how;
  how.name = "clip";
  how.grid_x = grid;
  how.threads = kClipThreads;
  how.cooperative = clip_meets(args, grid);
  launch(how, &clip<ClipEnv>, args, stream);
}

#if !defined(RNNFAST_SIMT)
int clip_blocks_per_sm() {
  int blocks = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, &clip<ClipEnv>, kClipThreads, 0);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  return blocks;
}
#endif

}  // namespace rnnfast::cuda
