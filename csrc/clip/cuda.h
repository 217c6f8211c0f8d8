// Norm, scale and clamp of a list of tensors in one launch: what the kernel is given.
//
// Tensors are cut into chunks of `chunk_bytes`. Chunk c belongs to block c % grid, in the sum and
// in the scale, which takes them in the reverse order: what was read last is read first again, from
// L2. Sums run in fp32 within what a thread has of a chunk (fp64 tensors: fp64), in fp64 beyond.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/device/stream.h"
#include "scan/problem.h"

namespace rnnfast::cuda {

enum class ClipKind : int { kTwo, kOne, kMax, kPower };

// What a launch does; kNorm | kScale is clip_grad_norm_.
enum ClipTask : int { kClipNorm = 1, kClipScale = 2, kClipClamp = 4 };

// Dense memory, of any alignment that its dtype allows.
struct ClipEntry {
  void* data;
  int64_t size;          // elements
  uint32_t first_chunk;  // chunks of the entries before
  uint16_t dtype;        // a DType
  uint16_t repeats;      // how often the list has this tensor
};

// Σ|x|^p of a part is sum · 2^(p · exponent); for kMax, sum is the largest |x|.
struct alignas(16) ClipSum {
  double sum, exponent;
};

inline constexpr int kClipThreads = 256, kClipInline = 160, kClipChunkBytes = 32768;

struct ClipArgs {
  const ClipEntry* table = nullptr;  // on the device, or null: `inlined`
  int64_t chunks = 0;
  double p = 2;                   // of the norm; 2, 1 for kTwo, kOne
  double limit = 0;               // max_norm of kClipScale, the bound of kClipClamp
  ClipSum* sums = nullptr;        // [grid]
  unsigned* meet = nullptr;       // [2], 0 before the launch, and after it
  const double* given = nullptr;  // the norm, where only kClipScale is asked for
  double* wide = nullptr;         // the norm, out, or null
  void* result = nullptr;         // the norm as a DType `result_dtype`, out, or null
  int result_dtype = 0;
  int entries = 0, chunk_bytes = kClipChunkBytes, task = 0;
  ClipKind kind = ClipKind::kTwo;
  ClipEntry inlined[kClipInline];
};
static_assert(sizeof(ClipArgs) <= 4096, "a launch takes no more on every driver");

struct ClipTensor {
  void* data = nullptr;
  int64_t size = 0;
  DType dtype = DType::kFloat32;
};

struct ClipTable {
  std::vector<ClipEntry> entries;  // without the empty ones; a tensor listed twice once
  int64_t chunks = 0;
  bool overlapping = false;  // two tensors share a part of their memory: scale them one by one
};

// Throws std::invalid_argument for more than 2^32 - 1 chunks.
ClipTable make_clip_table(const std::vector<ClipTensor>& tensors,
                          int64_t chunk_bytes = kClipChunkBytes);

ClipKind clip_kind(double p);  // p > 0, infinity included

// How many blocks a launch has: all of them meet, so no more than fit the device at once.
int clip_grid(int64_t chunks, int sm_count, int blocks_per_sm);

// Whether the blocks of a launch wait for one another.
inline bool clip_meets(const ClipArgs& args, int grid) {
  return (args.task & kClipNorm) && grid > 1;
}

// One launch on `stream`. `args.table` or `args.inlined` holds the entries. Throws
// std::runtime_error where it fails.
void launch_clip(const ClipArgs& args, int grid, Stream stream);

// The same, in its turn among the launches whose blocks wait: ops_cuda/turn.h's GridTurn.
template <class Turn>
void launch_clip_in_turn(const ClipArgs& args, int grid, Stream stream) {
  Turn turn(clip_meets(args, grid), stream);
  launch_clip(args, grid, stream);
  turn.launched();
}

#if !defined(RNNFAST_SIMT)
// Blocks of the kernel that fit a multiprocessor of the current device at once.
int clip_blocks_per_sm();
#endif

}  // namespace rnnfast::cuda
