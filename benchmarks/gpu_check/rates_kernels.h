// Small kernels whose time says what the cost model assumes (csrc/cuda/plan/model.h). Written against
// csrc/cuda/device/device.h, so that the executor runs them too. Each does `rounds` times the same; what
// must not be optimised away is stored where it can't be: under a condition that never holds.
#pragma once

#include "cuda/device/device.h"

namespace rnnfast::cuda {

inline constexpr int kRateThreads = 256;  // of a block: 8 warps, as the recurrent kernels have
inline constexpr int kRateWarps = kRateThreads / 32;

struct RateArgs {
  int rounds = 0;
  float* out = nullptr;             // one value
  const unsigned* words = nullptr;  // what is read
  unsigned* counter = nullptr;      // zero before a launch
  unsigned* late = nullptr;         // zero before a launch; then how many have waited for too long
  int64_t patience = 0;             // clocks that a block waits for others
  int absent = 0;                   // blocks that are waited for and never come: to test patience
  int64_t bytes = 0;                // of what is read, or sent to each peer
};

// How far the clock is, and a moment's rest. The executor has no clock: it counts how often it is asked.
#if defined(RNNFAST_SIMT)
inline int64_t rate_clock() {
  static int64_t asked = 0;
  return ++asked;
}
inline void rate_rest(Site site = Site::here()) { ::simt::pause(site); }
#else
RNNFAST_DEVICE int64_t rate_clock() { return clock64(); }
RNNFAST_DEVICE void rate_rest() { __nanosleep(20); }
#endif

// Words of 16 bytes.
struct alignas(16) RateWord {
  uint32_t at[4];
};

RNNFAST_DEVICE void keep(const RateArgs& args, float value) {
  if (value == 1.2345678e-30f) store(args.out, value);
}

// A chain of dependent multiply-adds, 4 clocks each on every GPU since Volta: what a clock is.
inline constexpr int kChain = 64;
RNNFAST_KERNEL(32) chain_rate(RNNFAST_ARGS RateArgs args) {
  float x = float(thread_index());
  for (int round = 0; round < args.rounds; ++round) {
    RNNFAST_UNROLL
    for (int i = 0; i < kChain; ++i) x = x * 0.9999f + 0.5f;
  }
  keep(args, x);
}

inline constexpr int kFfma = 16, kFfmaTurns = 8;
RNNFAST_KERNEL(kRateThreads) ffma_rate(RNNFAST_ARGS RateArgs args) {
  float x[kFfma];
  RNNFAST_UNROLL
  for (int i = 0; i < kFfma; ++i) x[i] = float(thread_index() + i);
  for (int round = 0; round < args.rounds; ++round) {
    RNNFAST_UNROLL
    for (int turn = 0; turn < kFfmaTurns; ++turn) {
      RNNFAST_UNROLL
      for (int i = 0; i < kFfma; ++i) x[i] = x[i] * 0.9999f + 0.5f;
    }
  }
  float sum = 0;
  RNNFAST_UNROLL
  for (int i = 0; i < kFfma; ++i) sum += x[i];
  keep(args, sum);
}

inline constexpr int kSpecials = 8;  // of a thread in a round
RNNFAST_KERNEL(kRateThreads) special_rate(RNNFAST_ARGS RateArgs args) {
  float x[kSpecials];
  RNNFAST_UNROLL
  for (int i = 0; i < kSpecials; ++i) x[i] = 0.01f * float(thread_index() + i);
  for (int round = 0; round < args.rounds; ++round) {
    RNNFAST_UNROLL
    for (int i = 0; i < kSpecials; ++i) x[i] = exp2_fast(x[i]);
  }
  float sum = 0;
  RNNFAST_UNROLL
  for (int i = 0; i < kSpecials; ++i) sum += x[i];
  keep(args, sum);
}

inline constexpr int kMmas = 8;  // of a warp in a round, independent
RNNFAST_KERNEL(kRateThreads) mma_rate(RNNFAST_ARGS RateArgs args) {
  float d[kMmas][4];
  uint32_t a[4], b[2];
  RNNFAST_UNROLL
  for (int i = 0; i < 4; ++i) a[i] = uint32_t(lane() * 4 + i);
  b[0] = b[1] = uint32_t(lane());
  RNNFAST_UNROLL
  for (int k = 0; k < kMmas; ++k) {
    RNNFAST_UNROLL
    for (int i = 0; i < 4; ++i) d[k][i] = 0;
  }
  for (int round = 0; round < args.rounds; ++round) {
    RNNFAST_UNROLL
    for (int k = 0; k < kMmas; ++k) mma_bf16(d[k], a, b);
  }
  float sum = 0;
  RNNFAST_UNROLL
  for (int k = 0; k < kMmas; ++k) sum += d[k][0] + d[k][1] + d[k][2] + d[k][3];
  keep(args, sum);
}

inline constexpr int kMatrixLoads = 16;  // of a warp in a round, 512 bytes each
RNNFAST_KERNEL(kRateThreads) shared_rate(RNNFAST_ARGS RateArgs args) {
  RNNFAST_SHARED_ARRAY(RateWord, rows, kMatrixLoads * 32);
  for (int i = thread_index(); i < kMatrixLoads * 32; i += kRateThreads) {
    rows[i] = RateWord{{uint32_t(i), 0, 0, 0}};
  }
  sync_block();
  uint32_t sum = 0;
  const RateWord* from = rows + lane();
  for (int round = 0; round < args.rounds; ++round) {
    RNNFAST_UNROLL
    for (int i = 0; i < kMatrixLoads; ++i) {
      uint32_t r[4];
      load_matrix_x4(r, from + i * 32);
      sum ^= r[0] ^ r[1] ^ r[2] ^ r[3];
    }
    from += args.bytes;  // 0, which the compiler can't know: else it reads once
  }
  keep(args, float_of(sum));
}

// Each block reads `bytes` of its own a round, past L1.
inline constexpr int kL2Loads = 8;  // on their way at once
RNNFAST_KERNEL(kRateThreads) l2_rate(RNNFAST_ARGS RateArgs args) {
  const int64_t words = args.bytes / 16;
  const RateWord* own = reinterpret_cast<const RateWord*>(args.words) + block_x() * words;
  uint32_t sum = 0;
  for (int round = 0; round < args.rounds; ++round) {
    for (int64_t first = thread_index(); first < words; first += kL2Loads * kRateThreads) {
      RateWord read[kL2Loads];
      RNNFAST_UNROLL
      for (int i = 0; i < kL2Loads; ++i) {
        const int64_t place = first + i * kRateThreads;
        read[i] = load_coherent(own + (place < words ? place : first));
      }
      RNNFAST_UNROLL
      for (int i = 0; i < kL2Loads; ++i) sum ^= read[i].at[0] ^ read[i].at[3];
    }
  }
  keep(args, float_of(sum));
}

// All blocks read all of `bytes` together, once a round.
RNNFAST_KERNEL(kRateThreads) dram_rate(RNNFAST_ARGS RateArgs args) {
  const RateWord* all = reinterpret_cast<const RateWord*>(args.words);
  const int64_t words = args.bytes / 16, step = int64_t(grid_x()) * kRateThreads;
  uint32_t sum = 0;
  for (int round = 0; round < args.rounds; ++round) {
    for (int64_t i = int64_t(block_x()) * kRateThreads + thread_index(); i < words; i += step) {
      sum ^= load_once(all + i).at[0];
    }
  }
  keep(args, float_of(sum));
}

// `words` is a chain: each holds the index of the next.
RNNFAST_KERNEL(32) l2_latency(RNNFAST_ARGS RateArgs args) {
  unsigned at = 0;
  if (thread_index() == 0) {
    for (int round = 0; round < args.rounds; ++round) at = load_coherent(args.words + at);
  }
  keep(args, float_of(at));
}

inline constexpr int kBarriers = 16;
RNNFAST_KERNEL(kRateThreads) block_barrier(RNNFAST_ARGS RateArgs args) {
  for (int round = 0; round < args.rounds; ++round) {
    RNNFAST_UNROLL
    for (int i = 0; i < kBarriers; ++i) sync_block();
  }
}

// The way of one value through a step: operand to shared memory, barrier, ldmatrix, two dependent
// products, a sigmoid and a tanh.
RNNFAST_KERNEL(kRateThreads) step_chain(RNNFAST_ARGS RateArgs args) {
  RNNFAST_SHARED_ARRAY(RateWord, rows, 2 * 32);
  for (int i = thread_index(); i < 2 * 32; i += kRateThreads) rows[i] = RateWord{{0, 0, 0, 0}};
  uint32_t a[4];
  RNNFAST_UNROLL
  for (int i = 0; i < 4; ++i) a[i] = uint32_t(lane() + i);
  float x = 0;
  sync_block();
  for (int round = 0; round < args.rounds; ++round) {
    RateWord* set = rows + (round & 1) * 32;
    if (warp() == round % kRateWarps) set[lane()].at[0] = bits_of(x);
    sync_block();
    uint32_t b[4];
    load_matrix_x4(b, set + lane());
    const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
    float d[4] = {x, 0, 0, 0};
    mma_bf16(d, a, b0);
    mma_bf16(d, a, b1);
    const float sigmoid = reciprocal_fast(1 + exp2_fast(d[0]));
    x = 1 - 2 * reciprocal_fast(1 + exp2_fast(sigmoid));
  }
  keep(args, x);
}

// As a team of blocks meets through global memory (csrc/cuda/team/grid.h). A launch in which a block
// has waited for too long ends by itself, and the device can go on: the first to notice lets all
// pass, for good.
inline constexpr unsigned kOpen = 1u << 30;  // more than any count
RNNFAST_KERNEL(kRateThreads) grid_barrier(RNNFAST_ARGS RateArgs args) {
  unsigned all = 0;
  for (int round = 0; round < args.rounds; ++round) {
    all += unsigned(grid_x() + args.absent);
    sync_block();
    if (thread_index() == 0) {
      add_release<Scope::kDevice>(args.counter, 1u);
      const int64_t began = rate_clock();
      bool told = false;
      while (int(load_acquire<Scope::kDevice>(args.counter) - all) < 0) {
        rate_rest();
        if (!told && rate_clock() - began > args.patience) {
          told = true;
          if (atomic_add<Scope::kDevice>(args.late, 1u) == 0) {
            add_release<Scope::kDevice>(args.counter, kOpen);
          }
        }
      }
    }
    sync_block();
  }
}

// As a cluster's blocks push into one another's shared memory (csrc/cuda/team/cluster.h): `bytes`
// to each of the others, into one of two places in turn.
RNNFAST_KERNEL(kRateThreads) cluster_exchange(RNNFAST_ARGS RateArgs args) {
  RNNFAST_SHARED_DYNAMIC(shared);
  uint64_t* const arrived = reinterpret_cast<uint64_t*>(shared);
  RateWord* const received = reinterpret_cast<RateWord*>(shared + 16);
  const int blocks = cluster_blocks(), words = int(args.bytes / 16), sent = words * (blocks - 1);
  if (thread_index() == 0) {
    mbarrier_init(arrived, 1);
    mbarrier_init(arrived + 1, 1);
    mbarrier_publish();
  }
  sync_cluster();
  for (int round = 0; round < args.rounds; ++round) {
    uint64_t* const bar = arrived + (round & 1);
    RateWord* const own = received + ((round & 1) * blocks + cluster_rank()) * words;
    const RateWord value{{uint32_t(round), 0, 0, 0}};
    for (int i = thread_index(); i < sent; i += kRateThreads) {
      const int peer = i / words;
      store_async(own + i % words, value, bar, peer < cluster_rank() ? peer : peer + 1);
    }
    if (thread_index() == 0) mbarrier_arrive_expect(bar, sent * 16);
    mbarrier_wait_cluster(bar, round >> 1 & 1);
  }
  sync_cluster();
}

RNNFAST_KERNEL(32) nothing(RNNFAST_ARGS RateArgs args) { keep(args, 0.0f); }

}  // namespace rnnfast::cuda
