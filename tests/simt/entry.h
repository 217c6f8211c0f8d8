// What device_simt.h, that is a kernel, calls in the executor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/storage.h"
#include "simt/sanitizers.h"

namespace simt {

using rnnfast::cuda::Launch;
using rnnfast::cuda::Scope;

// A place in the source. As a default argument: the caller's.
struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};

// The CUDA thread that runs.
struct Here {
  int thread, block_threads;
  int block_x, block_y, grid_x, grid_y;
  int cluster_rank, cluster_blocks;
};
extern const Here* here;

// Ends the launch with an error of the running thread.
[[noreturn]] void fault(const char* message, Site site);

// ---- launches

// Runs call(kernel, args) once for each thread of the grid.
struct Body {
  void (*call)(const void* kernel, const void* args);
  const void* kernel;
  const void* args;
};
void run(const Launch& launch, const Body& body);
// Blocks of such a launch that the device runs at once, whatever its grid.
int resident_blocks(const Launch& launch);

// ---- scheduling

// Some accesses, drawn at random, let another thread run first. `accesses_left` counts them down.
extern int accesses_left;
void preempt();
SIMT_UNWATCHED inline void access_point() {
  if (--accesses_left <= 0) preempt();
}

// The running thread polls, for `what`, and lets others run.
void pause(Site site, const char* what = "pause");

// ---- shared memory

void* shared_dynamic();
// The array of this key of the running block, made at the first call.
void* shared_array(const void* key, size_t bytes, size_t alignment, Site site);
void require_shared(const void* p, size_t bytes, const char* what, Site site);

// ---- barriers, and the meetings of a warp's lanes

void sync_block(Site site);
void sync_named(int id, int threads, Site site);

// What the lanes of a mask do together. carry_out is called once, when all have come, with what
// each lane handed in; lanes not of the mask have null.
struct Operation {
  const char* name;
  void (*carry_out)(uint32_t mask, void* const* operands);
  bool orders_memory;
};
void meet(const Operation& operation, uint32_t mask, void* operands, Site site);

inline constexpr uint32_t kWholeWarp = 0xFFFFFFFFu;
extern const Operation kSyncWarp, kShuffle, kShuffleXor, kBallot, kLoadMatrix, kMmaBf16, kMmaF16,
    kMmaTf32;

struct ShuffleOperands {
  uint64_t value;  // in and out
  int lane;        // the source lane, or the xor of lanes
  Site site;
};
struct BallotOperands {
  bool predicate;
  uint32_t result;
};
struct LoadMatrixOperands {
  uint32_t row[4];  // this lane's row
  uint32_t* result;
};
struct MmaOperands {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  Site site;
};

// ---- asynchronous copies

void copy_async(void* shared, const void* global, int bytes, Site site);
void copy_commit();
void copy_wait(int groups_left, Site site);

// ---- global memory

// Faults where a thread of this launch wrote what it reads as constant, or the other way round.
void note_constant_read(const void* p, size_t bytes, Site site);
void note_write(const void* p, size_t bytes, Site site);

void fence(Scope scope);
void note_atomic(const void* p, Scope scope, Site site);
void release_at(const void* p, Scope scope);
void acquire_at(const void* p, Scope scope);

// ---- mbarriers

void mbarrier_init(uint64_t* bar, int count, Site site);
void mbarrier_arrive(uint64_t* bar, int expected_bytes, Site site);
// `bytes` of a transaction have arrived at the barrier.
void mbarrier_complete(uint64_t* bar, int bytes, Site site);
void mbarrier_wait(uint64_t* bar, int parity, Site site);
void mbarrier_invalidate(uint64_t* bar, Site site);

// ---- clusters

void sync_cluster(Site site);
// The running thread's mbarriers may be completed by other blocks, after a sync_cluster.
void mbarrier_publish();
void mbarrier_wait_cluster(uint64_t* bar, int parity, Site site);
// 16 bytes on their way to block `rank` of the cluster. `place` and `bar` are the caller's own.
void store_async(void* place, const void* value, uint64_t* bar, int rank, Site site);

}  // namespace simt
