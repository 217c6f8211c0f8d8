// How the blocks that compute a batch tile together tell one another that a step's operands are
// there.
#pragma once

#include "cuda/device/device.h"

namespace rnnfast::cuda {

// The teams, grid.h and cluster.h, exchange operands: for each batch tile exchange 0, 1, 2 …, of
// which the even ones and the odd ones each have a set of rows, one row a sequence. A block puts
// the operands of its units, signals, and waits before it reads all.
//
// Two sets are enough, without a further barrier: a block that puts exchange e + 2 has waited for
// all of e + 1, which every block has put after it had read e.
//
//   kKind, kRowsShared            where the rows are: in shared memory, or in global
//   Team(args, shared)            shared: where its own shared memory begins
//   shared_bytes()
//   team(), rank()                which team this is, and which block of it
//   open(), close()               before the first exchange and after the last; all threads
//   put(tile, e, column, byte, v) one operand or several, 2 to 16 bytes, at `byte` of the row
//   signal(tile, e, first, bytes) all threads of the block, when all have put; it has put bytes
//                                 first … first + bytes of each row. A barrier of the block.
//   wait(tile, e)                 all threads; whatever the others have put is there. A barrier of
//                                 the block, if a team of this kind may have several batch tiles
//   row(tile, e, column)          the operands of a sequence; read(p) reads 16 bytes of them

// 16 bytes of a row.
struct alignas(16) Word16 {
  uint32_t at[4];
};

}  // namespace rnnfast::cuda
