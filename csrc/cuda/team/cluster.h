// Blocks of a thread-block cluster, which push operands into each other's shared memory: every
// block has both sets of rows whole, and for each set an mbarrier that completes when the bytes of
// all others have arrived. So neither a fence nor a barrier of the cluster is needed in a step.
#pragma once

#include "cuda/team/arguments.h"
#include "cuda/team/shapes.h"
#include "cuda/team/team.h"

namespace rnnfast::cuda {

class ClusterTeam {
 public:
  static constexpr TeamKind kKind = TeamKind::kCluster;
  static_assert(kWarps == kColumns, "in signal a warp sends a row");

  RNNFAST_DEVICE ClusterTeam(const TeamArgs& args, unsigned char* shared)
      : args_(args),
        stride_(team_row_stride(kKind, args.row_bytes)),
        arrived_(reinterpret_cast<uint64_t*>(shared)),
        rows_(shared + 16) {}

  RNNFAST_DEVICE int64_t shared_bytes() const { return 16 + 2 * kColumns * stride_; }
  RNNFAST_DEVICE int team() const { return block_x() / args_.blocks; }
  RNNFAST_DEVICE int rank() const { return cluster_rank(); }

  RNNFAST_DEVICE void open() {
    for (int64_t i = thread_index() * 16; i < 2 * kColumns * stride_; i += kThreads * 16) {
      *reinterpret_cast<Word16*>(rows_ + i) = Word16{{0, 0, 0, 0}};
    }
    if (thread_index() == 0) {
      mbarrier_init(arrived_, 1);
      mbarrier_init(arrived_ + 1, 1);
      mbarrier_publish();
    }
    sync_cluster();
  }
  // A block's shared memory must outlive what others send to it.
  RNNFAST_DEVICE void close() { sync_cluster(); }

  template <class V>
  RNNFAST_DEVICE void put(int tile, int e, int column, int64_t byte, const V& value) const {
    *reinterpret_cast<V*>(row(tile, e, column) + byte) = value;
  }

  RNNFAST_DEVICE void signal(int tile, int e, int64_t first, int64_t bytes) const {
    sync_block();
    const int64_t end = first + bytes < args_.row_bytes ? first + bytes : args_.row_bytes;
    const int words = first < end ? int(end - first) / 16 : 0;  // of a row
    // A warp sends a row: 8 words at a time, to 4 of the others at a time.
    unsigned char* own = row(tile, e, warp()) + first;
    for (int word = lane() & 7; word < words; word += 8) {
      auto* place = reinterpret_cast<Word16*>(own + word * 16);
      const Word16 value = *place;
      for (int peer = lane() / 8; peer < args_.blocks - 1; peer += 4) {
        store_async(place, value, arrived_ + (e & 1), peer < rank() ? peer : peer + 1);
      }
    }
    if (thread_index() == 0) {
      const int64_t sent = int64_t(args_.blocks) * bytes;  // by all, but no more than a row
      const int64_t whole = sent < args_.row_bytes ? sent : args_.row_bytes;
      mbarrier_arrive_expect(arrived_ + (e & 1), int(whole * kColumns) - words * kColumns * 16);
    }
  }

  RNNFAST_DEVICE void wait(int, int e) const {
    mbarrier_wait_cluster(arrived_ + (e & 1), e >> 1 & 1);
  }

  RNNFAST_DEVICE unsigned char* row(int, int e, int column) const {
    return rows_ + ((e & 1) * kColumns + column) * stride_;
  }
  RNNFAST_DEVICE static Word16 read(const unsigned char* p) {
    return *reinterpret_cast<const Word16*>(p);
  }

 private:
  const TeamArgs& args_;
  int64_t stride_;
  uint64_t* arrived_;  // [2]
  unsigned char* rows_;
};

}  // namespace rnnfast::cuda
