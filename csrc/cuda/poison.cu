#include <algorithm>

#include "cuda/launch.h"
#include "cuda/poison.h"

namespace rnnfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks = 4096;  // beyond, a thread takes several words

// The words between the first and the last 4-byte boundary by all threads, the odd bytes at both
// ends by the first.
__global__ void poison_kernel(unsigned char* data, std::int64_t bytes) {
  const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) % 4);
  std::int64_t head = (4 - misaligned) % 4;
  if (head > bytes) head = bytes;
  const std::int64_t words = (bytes - head) / 4;
  const std::int64_t thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t threads = std::int64_t{gridDim.x} * blockDim.x;
  auto* aligned = reinterpret_cast<std::uint32_t*>(data + head);
  for (std::int64_t i = thread; i < words; i += threads) aligned[i] = 0xFFFFFFFFu;
  if (thread == 0) {
    for (std::int64_t i = 0; i < head; ++i) data[i] = 0xFF;
    for (std::int64_t i = head + 4 * words; i < bytes; ++i) data[i] = 0xFF;
  }
}

}  // namespace

void poison(void* data, std::int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  const std::int64_t blocks = (bytes / 4 + kThreads) / kThreads;
  const dim3 grid(static_cast<unsigned>(std::min(blocks, kMaxBlocks)));
  const dim3 block(kThreads);
  poison_kernel<<<grid, block, 0, stream>>>(static_cast<unsigned char*>(data), bytes);
  check_launch("poison_kernel", grid, block);
}

}  // namespace rnnfast::cuda
