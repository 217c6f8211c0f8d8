// Blocks of a grid, all of them on the device at once (a cooperative launch), that exchange
// operands through global memory: each writes its part and adds 1 to the tile's counter; who has
// seen all additions reads. Loads and stores go through L2; the counter only ever grows, and is
// compared by difference.
#pragma once

#include "cuda/team/arguments.h"
#include "cuda/team/shapes.h"
#include "cuda/team/team.h"

namespace rnnfast::cuda {

class GridTeam {
 public:
  static constexpr TeamKind kKind = TeamKind::kGrid;

  RNNFAST_DEVICE GridTeam(const TeamArgs& args, unsigned char*)
      : args_(args), stride_(team_row_stride(kKind, args.row_bytes)) {
    const int teams = grid_x() / args.blocks;
    team_ = block_x() / args.blocks;
    const int64_t all = int64_t(grid_y()) * teams * args.tiles;  // batch tiles of the launch
    first_ = (int64_t(block_y()) * teams + team_) * args.tiles;
    counters_ = args.workspace + all * 2 * kColumns * stride_;
  }

  RNNFAST_DEVICE int64_t shared_bytes() const { return 0; }
  RNNFAST_DEVICE int team() const { return team_; }
  RNNFAST_DEVICE int rank() const { return block_x() - team_ * args_.blocks; }
  RNNFAST_DEVICE void open() {}
  RNNFAST_DEVICE void close() {}

  template <class V>
  RNNFAST_DEVICE void put(int tile, int e, int column, int64_t byte, const V& value) const {
    store(reinterpret_cast<V*>(row(tile, e, column) + byte), value);
  }

  RNNFAST_DEVICE void signal(int tile, int, int64_t, int64_t) const {
    sync_block();
    if (thread_index() == 0) add_release<Scope::kDevice>(counter(tile), 1u);
  }

  // One thread asks, and the block's barrier passes on what it has seen: eight warps that poll one
  // line would each make L2 answer.
  RNNFAST_DEVICE void wait(int tile, int e) const {
    if (thread_index() == 0) {
      const unsigned all = unsigned(args_.blocks) * unsigned(e + 1);
      wait_for("rnnfast: the exchange of a grid team timed out",
               [&] { return int(load_acquire<Scope::kDevice>(counter(tile)) - all) >= 0; });
    }
    sync_block();
  }

  RNNFAST_DEVICE unsigned char* row(int tile, int e, int column) const {
    return args_.workspace + (((first_ + tile) * 2 + (e & 1)) * kColumns + column) * stride_;
  }
  RNNFAST_DEVICE static Word16 read(const unsigned char* p) {
    return load_coherent(reinterpret_cast<const Word16*>(p));
  }

 private:
  RNNFAST_DEVICE unsigned* counter(int tile) const {
    return reinterpret_cast<unsigned*>(counters_ + (first_ + tile) * kCounterBytes);
  }

  const TeamArgs& args_;
  int64_t stride_;
  int team_;
  int64_t first_;  // of the launch's batch tiles
  unsigned char* counters_;
};

}  // namespace rnnfast::cuda
