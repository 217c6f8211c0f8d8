#include <algorithm>

#include "cuda/device.h"
#include "cuda/poison.h"

namespace rnnfast::cuda {
namespace {

constexpr int kThreads = 256;

struct Args {
  unsigned char* data;
  std::int64_t bytes;
};
constexpr std::int64_t kMaxBlocks = 4096;  // beyond, a thread takes several words

// The words between the first and the last 4-byte boundary by all threads, the odd bytes at both
// ends by the first.
RNNFAST_KERNEL(kThreads) poison_kernel(RNNFAST_ARGS Args args) {
  unsigned char* const data = args.data;
  const std::int64_t bytes = args.bytes;
  const auto misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) % 4);
  std::int64_t head = (4 - misaligned) % 4;
  if (head > bytes) head = bytes;
  const std::int64_t words = (bytes - head) / 4;
  const std::int64_t thread = std::int64_t{block_x()} * block_threads() + thread_index();
  const std::int64_t threads = std::int64_t{grid_x()} * block_threads();
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
  const Args args{static_cast<unsigned char*>(data), bytes};
  const Launch how{"poison_kernel", std::min(blocks, kMaxBlocks), 1, kThreads};
  launch(how, &poison_kernel, args, stream);
}

}  // namespace rnnfast::cuda
