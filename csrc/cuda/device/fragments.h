// Which row of W_hh stands where in a forward tile: so that the accumulators of a thread hold every
// gate of its units, without a shuffle. A thread of a warp has rows lane/4 and lane/4 + 8 of a
// tile: half a tile, 8 rows, is one gate of 8 units (an octet), and all threads with the same
// lane/4 have the same unit of it.
#pragma once

#include "cells/list.h"
#include "cuda/device/device.h"

namespace rnnfast::cuda {

// gate(tile, half), octet(tile, half): what the lower and the upper half of a tile of a group are.
template <template <class> class Cell>
struct Rows;

template <>
struct Rows<RnnTanh> {  // one gate, two octets
  RNNFAST_HD static constexpr int gate(int, int) { return 0; }
  RNNFAST_HD static constexpr int octet(int, int half) { return half; }
};

template <>
struct Rows<Lstm> {  // i, f; g, o of one octet
  RNNFAST_HD static constexpr int gate(int tile, int half) { return 2 * tile + half; }
  RNNFAST_HD static constexpr int octet(int, int) { return 0; }
};

template <>
struct Rows<Gru> {  // r, z of each octet, then n of both: the tile that a second phase needs alone
  RNNFAST_HD static constexpr int gate(int tile, int half) { return tile == 2 ? 2 : half; }
  RNNFAST_HD static constexpr int octet(int tile, int half) { return tile == 2 ? half : tile; }
};

template <>
struct Rows<GruResetBefore> : Rows<Gru> {};

}  // namespace rnnfast::cuda
