// Toy kernels, right and wrong, for the sanitizers: `simt_faults <name>` runs one, under the
// schedules that RNNFAST_SIMT_SEED and RNNFAST_SIMT_SCHEDULE say. What a wrong one must be reported
// as is written in tests/simt/test_executor.py. Without a name: the list.
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>

#include "cuda/device/device.h"
#include "simt/executor.h"

namespace {

using namespace rnnfast::cuda;  // NOLINT: a kernel's own namespace

enum class Bug {
  kNone,
  kNoBarrier,
  kNoBarrierBeforeReuse,
  kNoSyncWarp,
  kGlobalOutOfBounds,
  kGlobalVectorOutOfBounds,
  kSharedOutOfBounds,
  kStaticOutOfBounds,
  kSharedOfAnotherBlock,
  kNoGridBarrier,
  kNoFence,
  kNoRelease,
  kNarrowFence,
  kNoClusterWait,
  kNoClusterBarrier,
  kNoBarrierBeforeSend,
  kSpin
};

struct Args {
  const float* x;  // [kCount]
  float* y;        // [kBlocks]
  unsigned* flag;
  unsigned char** leaked;  // shared memory of block 0
  Bug bug;
};

constexpr int kThreads = 64, kBlocks = 3, kCount = 256, kSteps = 4;

// y[b] = kSteps times the sum of x, through shared memory.
RNNFAST_KERNEL(kThreads) block_sum(RNNFAST_ARGS Args args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  RNNFAST_SHARED_ARRAY(float, partial, 2);
  auto* staged = reinterpret_cast<float*>(shared);  // [kCount]
  float sum = 0;
  for (int step = 0; step < kSteps; ++step) {
    copy_async_16(staged + 4 * thread_index(), args.x + 4 * thread_index(), 16);
    copy_async_commit();
    copy_async_wait<0>();
    if (args.bug != Bug::kNoBarrier) sync_block();
    const int shift = args.bug == Bug::kSharedOutOfBounds && step == 1 ? 1 : 0;
    float mine = 0;
    for (int i = thread_index(); i < kCount; i += kThreads) mine += staged[i + shift];
    for (int bit = 16; bit > 0; bit /= 2) mine += shuffle_xor(0xFFFFFFFFu, mine, bit);
    if (lane() == 0) partial[warp() + (args.bug == Bug::kStaticOutOfBounds ? 1 : 0)] = mine;
    if (args.bug != Bug::kNoBarrierBeforeReuse) sync_block();
    if (thread_index() == 0) sum += partial[0] + partial[1];
  }
  const int off = args.bug == Bug::kGlobalOutOfBounds ? 1 : 0;
  if (thread_index() == 0) store(args.y + block_x() + off, sum);
  struct alignas(16) Four {
    float at[4];
  };
  if (args.bug == Bug::kGlobalVectorOutOfBounds && thread_index() == kThreads - 1) {
    store(args.y + block_x(), load(reinterpret_cast<const Four*>(args.x) + kThreads).at[0]);
  }
}

// Neighbours within a warp.
RNNFAST_KERNEL(kThreads) neighbours(RNNFAST_ARGS Args args) {
  RNNFAST_SHARED_ARRAY(float, slots, kThreads);
  slots[thread_index()] = 1;
  if (args.bug != Bug::kNoSyncWarp) sync_warp(0xFFFFFFFFu);
  const float next = slots[thread_index() ^ 1];
  if (thread_index() == 0) store(args.y + block_x(), next);
}

// Block 0 hands y[0] on to block 1, which hands it on to block 2.
RNNFAST_KERNEL(kThreads) hand_on(RNNFAST_ARGS Args args) {
  if (thread_index() != 0) return;
  const auto turn = static_cast<unsigned>(block_x());
  if (args.bug != Bug::kNoGridBarrier) {
    if (args.bug == Bug::kNoFence || args.bug == Bug::kNarrowFence) {
      while (atomic_add<Scope::kDevice>(args.flag, 0u) < turn) pause();
      if (args.bug == Bug::kNarrowFence) fence<Scope::kBlock>();
    } else {
      while (load_acquire<Scope::kDevice>(args.flag) < turn) pause();
    }
  }
  const float before = block_x() == 0 ? 1.0f : load_coherent(args.y + block_x() - 1);
  store(args.y + block_x(), before + 1);
  if (args.bug == Bug::kNoRelease) {
    atomic_add<Scope::kDevice>(args.flag, 1u);
  } else if (args.bug == Bug::kNarrowFence) {
    fence<Scope::kBlock>();
    atomic_add<Scope::kDevice>(args.flag, 1u);
  } else {
    add_release<Scope::kDevice>(args.flag, 1u);
  }
}

// The same with fences.
RNNFAST_KERNEL(kThreads) hand_on_fenced(RNNFAST_ARGS Args args) {
  if (thread_index() != 0) return;
  const auto turn = static_cast<unsigned>(block_x());
  while (atomic_add<Scope::kDevice>(args.flag, 0u) < turn) pause();
  fence<Scope::kDevice>();
  const float before = block_x() == 0 ? 1.0f : load_coherent(args.y + block_x() - 1);
  store(args.y + block_x(), before + 1);
  fence<Scope::kDevice>();
  atomic_add<Scope::kDevice>(args.flag, 1u);
}

// In a cluster: thread 0 sends to every block, into one of two sets of places, and thread 32 adds
// up what has come. What all have sent tells that all have read the other set.
RNNFAST_KERNEL(kThreads) all_gather(RNNFAST_ARGS Args args) {
  struct alignas(16) Four {
    float at[4];
  };
  RNNFAST_SHARED_ARRAY(uint64_t, bars, 2);
  RNNFAST_SHARED_ARRAY(Four, places, 2 * kBlocks);
  if (thread_index() == 0) {
    mbarrier_init(bars, 1);
    mbarrier_init(bars + 1, 1);
    mbarrier_publish();
  }
  sync_cluster();
  for (int step = 0; step < kSteps; ++step) {
    uint64_t* bar = bars + step % 2;
    Four* slots = places + step % 2 * kBlocks;
    if (thread_index() == 0) {
      mbarrier_arrive_expect(bar, kBlocks * 16);
      for (int to = 0; to < kBlocks; ++to) {
        store_async(slots + cluster_rank(), Four{{1, 2, 3, 4}}, bar, to);
      }
    }
    if (thread_index() == 0 || args.bug != Bug::kNoClusterWait) {
      mbarrier_wait_cluster(bar, step / 2 % 2);
    }
    if (thread_index() == 32) {
      float sum = 0;
      for (int b = 0; b < kBlocks; ++b) sum += slots[b].at[3];
      store(args.y + block_x(), sum);
    }
    if (args.bug != Bug::kNoBarrierBeforeSend) sync_block();
  }
  sync_cluster();
}

// In a cluster: through global memory.
RNNFAST_KERNEL(kThreads) to_the_next(RNNFAST_ARGS Args args) {
  if (thread_index() == 0) store(args.y + block_x(), 1.0f);
  if (args.bug != Bug::kNoClusterBarrier) sync_cluster();
  if (thread_index() == 40) load_coherent(args.y + (block_x() + 1) % kBlocks);
}

// Block 1 reads block 0's shared memory after block 0 has ended.
RNNFAST_KERNEL(kThreads) leak_shared(RNNFAST_ARGS Args args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  if (thread_index() != 0) return;
  shared[0] = 1;
  if (block_x() == 0) *args.leaked = shared;
  if (block_x() == 1) store(args.y, static_cast<float>((*args.leaked)[0]));
}

RNNFAST_KERNEL(kThreads) spin(RNNFAST_ARGS Args args) {
  volatile const unsigned* flag = args.flag;
  while (thread_index() == 0 && *flag == 0) {
  }
}

struct Case {
  void (*kernel)(Args);
  Bug bug;
  int resident_threads = 32768;
  int cluster_blocks = 1;
};

const std::map<std::string, Case> kCases = {
    {"right_block", {block_sum, Bug::kNone}},
    {"right_warp", {neighbours, Bug::kNone}},
    {"right_grid", {hand_on, Bug::kNone}},
    {"right_fences", {hand_on_fenced, Bug::kNone}},
    {"no_barrier", {block_sum, Bug::kNoBarrier}},
    {"no_barrier_before_reuse", {block_sum, Bug::kNoBarrierBeforeReuse}},
    {"no_sync_warp", {neighbours, Bug::kNoSyncWarp}},
    {"global_out_of_bounds", {block_sum, Bug::kGlobalOutOfBounds}},
    {"global_vector_out_of_bounds", {block_sum, Bug::kGlobalVectorOutOfBounds}},
    {"shared_out_of_bounds", {block_sum, Bug::kSharedOutOfBounds}},
    {"static_out_of_bounds", {block_sum, Bug::kStaticOutOfBounds}},
    {"shared_of_an_ended_block", {leak_shared, Bug::kSharedOfAnotherBlock, kThreads}},
    {"no_grid_barrier", {hand_on, Bug::kNoGridBarrier}},
    {"no_acquire", {hand_on, Bug::kNoFence}},
    {"no_release", {hand_on, Bug::kNoRelease}},
    {"narrow_fence", {hand_on, Bug::kNarrowFence}},
    {"right_cluster", {all_gather, Bug::kNone, 32768, kBlocks}},
    {"right_cluster_barrier", {to_the_next, Bug::kNone, 32768, kBlocks}},
    {"no_cluster_wait", {all_gather, Bug::kNoClusterWait, 32768, kBlocks}},
    {"no_cluster_barrier", {to_the_next, Bug::kNoClusterBarrier, 32768, kBlocks}},
    {"no_barrier_before_send", {all_gather, Bug::kNoBarrierBeforeSend, 32768, kBlocks}},
    {"spin", {spin, Bug::kSpin}},
};

void run(const Case& which) {
  // On the heap, of the exact size, 16-byte aligned: beyond the end is a redzone.
  struct alignas(16) Four {
    float at[4];
  };
  const auto x = std::make_unique<Four[]>(kCount / 4);
  const auto y = std::make_unique<float[]>(kBlocks);
  const auto flag = std::make_unique<unsigned>(0);
  unsigned char* leaked = nullptr;
  for (int i = 0; i < kCount; ++i) x[i / 4].at[i % 4] = 1;
  simt::set_resident_threads(which.resident_threads);
  simt::set_watchdog(2);
  launch<Args>({"toy", kBlocks, 1, kThreads, kCount * 4, false, which.cluster_blocks}, which.kernel,
               {&x[0].at[0], y.get(), flag.get(), &leaked, which.bug}, nullptr);
  for (int b = 0; b < kBlocks; ++b) std::cout << y[b] << " ";
  std::cout << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  const auto found = argc == 2 ? kCases.find(argv[1]) : kCases.end();
  if (found == kCases.end()) {
    for (const auto& [name, which] : kCases) std::cout << name << "\n";
    return argc == 1 ? 0 : 2;
  }
  try {
    run(found->second);
  } catch (const std::runtime_error& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
  return 0;
}
