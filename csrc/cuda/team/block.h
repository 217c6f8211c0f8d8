// What forward and backward of a team's block have in common: which (unit, sequence) pairs a thread
// has, and what it leaves of them in shared memory between its turns.
#pragma once

#include <cstring>

#include "cuda/device/sequences.h"
#include "cuda/team/arguments.h"
#include "cuda/team/shapes.h"
#include "cuda/team/team.h"

namespace rnnfast::cuda {

// A thread's pairs: of neighbouring threads the units are neighbours.
template <int kPairs>
struct Pairs {
  int units;         // of the block
  int64_t first, H;  // unit of the layer that is the block's first
  int unit[kPairs], column[kPairs];

  RNNFAST_DEVICE Pairs(int units_of_block, int rank, int64_t hidden)
      : units(units_of_block), first(int64_t(rank) * units_of_block), H(hidden) {
    RNNFAST_UNROLL
    for (int q = 0; q < kPairs; ++q) {
      const int pair = thread_index() + q * kThreads;
      unit[q] = pair % units;
      column[q] = pair / units;
    }
  }

  // Whether the thread has a q-th one, and whether its unit is one of the layer.
  RNNFAST_DEVICE bool has(int q) const { return column[q] < kColumns; }
  RNNFAST_DEVICE bool is_unit(int q) const { return has(q) && first + unit[q] < H; }

  // Where it stands in the row that begins there; inside it if it does not exist.
  RNNFAST_DEVICE int64_t place(int64_t row, int q) const {
    const int64_t u = first + unit[q];
    return row + (u < H ? u : H - 1);
  }
};

// kValues fp32 of every pair of every batch tile, in shared memory: only the thread that has the
// pair looks at them.
template <int kValues>
struct Parking {
  float* at;
  int pairs;  // of a batch tile

  RNNFAST_DEVICE static Parking begin(unsigned char* shared, int units) {
    return {reinterpret_cast<float*>(shared), units * kColumns};
  }
  RNNFAST_DEVICE float& value(int tile, int i, int q) const {
    return at[(tile * kValues + i) * pairs + thread_index() + q * kThreads];
  }
  // Anything of whole words, from value i on.
  template <class V>
  RNNFAST_DEVICE void put(int tile, int i, int q, const V& v) const {
    uint32_t words[sizeof(V) / 4];
    memcpy(words, &v, sizeof(V));
    RNNFAST_UNROLL
    for (int k = 0; k < int(sizeof(V) / 4); ++k) value(tile, i + k, q) = float_of(words[k]);
  }
  template <class V>
  RNNFAST_DEVICE void get(int tile, int i, int q, V& v) const {
    uint32_t words[sizeof(V) / 4];
    RNNFAST_UNROLL
    for (int k = 0; k < int(sizeof(V) / 4); ++k) words[k] = bits_of(value(tile, i + k, q));
    memcpy(&v, words, sizeof(V));
  }
  RNNFAST_DEVICE unsigned char* end(int tiles) const {
    return reinterpret_cast<unsigned char*>(at + tiles * kValues * pairs);
  }
};

// The batch tiles of a team, their sequences' longest; the order in which a block takes turns.
struct Tiles {
  int64_t first;  // of the batch's tiles
  int count;
  int* longest;  // [count], shared memory
  int most;      // of all

  // The next one whose sequences have not all ended at step s, or -1.
  RNNFAST_DEVICE int after(int s, int n) const {
    for (++n; n < count; ++n) {
      if (s < longest[n]) return n;
    }
    return -1;
  }

  RNNFAST_DEVICE static Tiles begin(unsigned char* shared, int team, int tiles,
                                    const Batch& batch) {
    const int64_t all = (batch.B + kColumns - 1) / kColumns;
    const int64_t first = int64_t(team) * tiles;
    const int64_t left = first < all ? all - first : 0;
    Tiles made{first, int(left < tiles ? left : tiles), reinterpret_cast<int*>(shared), 0};
    for (int n = thread_index(); n < made.count; n += kThreads) {
      made.longest[n] = batch.longest(first + n);
    }
    sync_block();
    for (int n = 0; n < made.count; ++n) {
      if (made.longest[n] > made.most) made.most = made.longest[n];
    }
    return made;
  }
};

}  // namespace rnnfast::cuda
