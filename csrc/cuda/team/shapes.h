// The compiled shapes of the kernels whose hidden units are split over a team of blocks, and what
// each needs, in plain C++ (solo/shapes.h has the same for one block).
//
// A team of `blocks` blocks computes `tiles` batch tiles of 8 sequences for all T steps. Block r
// owns hidden units r·U … (r + 1)·U: of W_hh the rows of all their gates (forward), of W_hhᵀ their
// rows (backward). The 8 warps of a block split the columns: warp w has slabs w, w + 8, … of every
// tile (16 rows) of the block, the first `held_slabs` of them in registers, the others in shared
// memory. So no two warps read the same operands, and a step's partial sums are added up in shared
// memory, in the order of the warps.
//
// Row of a forward block: gate · U + unit; of a backward block: unit.
#pragma once

#include "cells/list.h"
#include "cuda/device/slabs.h"

namespace rnnfast::cuda {

// How blocks of a team meet: through global memory and a counter, or through each other's shared
// memory (sm_90 and newer).
enum class TeamKind { kGrid, kCluster };

inline constexpr int kMostClusterBlocks = 16;

// A compiled shape: tiles of a block at most, and the slabs of a tile that a warp has in registers.
struct TeamShape {
  int tiles;
  int held_slabs;
};

struct TeamShapeList {
  const TeamShape* at;
  int size;
};

namespace detail {

inline constexpr TeamShape kRnnTeamForward[] = {{4, 4}};
inline constexpr TeamShape kLstmTeamForward[] = {{4, 4}, {8, 2}};
inline constexpr TeamShape kGruTeamForward[] = {{3, 5}, {6, 2}};
inline constexpr TeamShape kRnnTeamBackward[] = {{4, 4}};
inline constexpr TeamShape kGatedTeamBackward[] = {{1, 14}, {2, 8}};
inline constexpr TeamShape kGruResetBeforeTeamBackward[] = {{1, 12}, {2, 8}};

template <int N>
constexpr TeamShapeList team_list(const TeamShape (&shapes)[N]) {
  return {shapes, N};
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

}  // namespace detail

// THE list of what is compiled for teams, for each TeamKind and for bf16, fp16 and tf32: strict
// fp32 is bound by arithmetic at the sizes that need a team, and runs stepwise.
constexpr TeamShapeList team_shapes(Pass pass, CellId cell) {
  using namespace detail;
  const bool forward = pass == Pass::kForward;
  switch (cell) {
    case CellId::kRnnTanh:
    case CellId::kRnnRelu:
      return forward ? team_list(kRnnTeamForward) : team_list(kRnnTeamBackward);
    case CellId::kLstm:
      return forward ? team_list(kLstmTeamForward) : team_list(kGatedTeamBackward);
    case CellId::kGru:
      return forward ? team_list(kGruTeamForward) : team_list(kGatedTeamBackward);
    case CellId::kGruResetBefore:
      return forward ? team_list(kGruTeamForward) : team_list(kGruResetBeforeTeamBackward);
    default:
      return {nullptr, 0};
  }
}

// A block's units are a multiple of this: its rows then fill tiles, and what it sends is whole
// words of 16 bytes.
constexpr int unit_step(Pass pass, CellId cell) {
  return pass == Pass::kForward && cell_info(cell).gates % 2 == 0 ? 8 : 16;
}

// U, the units of a block.
constexpr int64_t team_units(Pass pass, CellId cell, int64_t H, int64_t blocks) {
  return detail::round_up(detail::ceil_div(H, blocks), unit_step(pass, cell));
}

constexpr int64_t team_tiles(Pass pass, CellId cell, int64_t units) {
  const int rows = pass == Pass::kForward ? cell_info(cell).gates : 1;
  return detail::ceil_div(rows * units, 16);
}

// The most units that a shape has room for, a multiple of unit_step.
constexpr int64_t most_units(Pass pass, CellId cell, TeamShape shape) {
  const int rows = pass == Pass::kForward ? cell_info(cell).gates : 1, step = unit_step(pass, cell);
  return shape.tiles * 16 / rows / step * step;
}

// (unit, sequence) pairs of a thread at most.
constexpr int team_pairs(Pass pass, CellId cell, TeamShape shape) {
  return int(detail::ceil_div(most_units(pass, cell, shape) * kColumns, kThreads));
}

// An exchange sends one value a unit, or those of a phase's gates; a cell of two phases has two
// exchanges a step and in backward two products: the second phase's, then the first one's. Values a
// unit of exchange `part`.
constexpr int exchanged_values(Pass pass, CellId cell, int part) {
  const CellInfo& info = cell_info(cell);
  if (pass == Pass::kForward) return 1;
  const int last = info.gate_phases() - 1;
  return info.phases[part < last ? last - part : 0].gates;
}

// Slabs of the operands of exchange `part`.
constexpr int64_t team_slabs(Pass pass, CellId cell, Math math, int64_t H, int part) {
  return detail::ceil_div(exchanged_values(pass, cell, part) * H, slab_values(math));
}

// Products of a step with matrices of their own columns.
constexpr int matrix_parts(Pass pass, CellId cell) {
  return pass == Pass::kBackward ? cell_info(cell).gate_phases() : 1;
}

// Slabs of a tile that a warp has, of all parts.
constexpr int64_t warp_slabs(Pass pass, CellId cell, Math math, int64_t H) {
  int64_t all = 0;
  for (int part = 0; part < matrix_parts(pass, cell); ++part) {
    all += detail::ceil_div(team_slabs(pass, cell, math, H, part), kWarps);
  }
  return all;
}

// Bytes of one sequence's operands in an exchange, and from one sequence to the next: in shared
// memory an odd number of slabs, so that a warp's reads of 16 bytes meet no bank conflict.
constexpr int64_t team_row_bytes(Pass pass, CellId cell, Math math, int64_t H) {
  const int64_t first = team_slabs(pass, cell, math, H, 0);
  const int64_t last = team_slabs(pass, cell, math, H, cell_info(cell).gate_phases() - 1);
  return (first > last ? first : last) * kSlabBytes;
}
RNNFAST_HD constexpr int64_t team_row_stride(TeamKind kind, int64_t row_bytes) {
  const int64_t slabs = row_bytes / kSlabBytes;
  return (kind == TeamKind::kCluster ? slabs | 1 : slabs) * kSlabBytes;
}

// Floats from one sequence's sums to the next: no bank conflict between the four of a warp.
RNNFAST_HD constexpr int sum_stride(int tiles) { return tiles * 16 + 4; }

// fp32 values that a (unit, sequence) pair leaves in shared memory between its turns.
constexpr int parked_values(Pass pass, CellId cell, Math math) {
  const CellInfo& info = cell_info(cell);
  if (info.gate_phases() == 1) return info.states;
  return pass == Pass::kForward ? 1 + operand_bytes(math)
                                : 3;  // the slots, or dg of the second phase
}

// Dynamic shared memory of a block; `tiles` batch tiles of a team.
constexpr int64_t team_shared_bytes(TeamKind kind, Pass pass, CellId cell, Math math,
                                    TeamShape shape, int64_t H, int64_t blocks, int64_t tiles) {
  const int64_t units = team_units(pass, cell, H, blocks);
  const int64_t rows = team_tiles(pass, cell, units);
  const int64_t held = warp_slabs(pass, cell, math, H) - shape.held_slabs;
  const int64_t weights = held > 0 ? held * rows * kWarps * kSlabShared : 0;
  const int64_t sums = int64_t(kWarps) * kColumns * sum_stride(shape.tiles) * 4;
  const int64_t parked = tiles * units * kColumns * parked_values(pass, cell, math) * 4;
  const int64_t longest = detail::round_up(tiles * 4, 16);
  const int64_t row = team_row_stride(kind, team_row_bytes(pass, cell, math, H));
  const int64_t received = kind == TeamKind::kCluster ? 2 * kColumns * row + 16 : 0;
  return received + weights + sums + parked + longest;
}

// Bytes of global memory, zeroed, that a launch of grid teams needs: two sets of operands of each
// batch tile of each team and direction, and a counter in a cache line of its own.
inline constexpr int64_t kCounterBytes = 128;
constexpr int64_t team_workspace(TeamKind kind, Pass pass, CellId cell, Math math, int64_t H,
                                 int64_t teams, int64_t tiles, int directions) {
  if (kind == TeamKind::kCluster) return 0;
  const int64_t row = team_row_bytes(pass, cell, math, H);
  return directions * teams * tiles * (2 * kColumns * row + kCounterBytes);
}

// The blocks that a team of at most `blocks` has: each owns a unit. (Of a block that sends nothing
// nobody would know whether it has read.)
constexpr int64_t team_blocks(Pass pass, CellId cell, int64_t H, int64_t blocks) {
  return detail::ceil_div(H, team_units(pass, cell, H, blocks));
}

struct TeamKernel {
  TeamKind kind;
  Pass pass;
  CellId cell;
  Math math;
  TeamShape shape;
};

// Whether H hidden units over `blocks` blocks fit this kernel where a block gets `shared_limit`.
constexpr bool team_fits(const TeamKernel& kernel, int64_t H, int64_t blocks, int64_t tiles,
                         int64_t shared_limit) {
  const auto [kind, pass, cell, math, shape] = kernel;
  if (kind == TeamKind::kCluster && (tiles != 1 || blocks > kMostClusterBlocks)) return false;
  if (team_blocks(pass, cell, H, blocks) != blocks) return false;
  const int64_t units = team_units(pass, cell, H, blocks);
  return team_tiles(pass, cell, units) <= shape.tiles && units <= most_units(pass, cell, shape) &&
         team_shared_bytes(kind, pass, cell, math, shape, H, blocks, tiles) <= shared_limit;
}

}  // namespace rnnfast::cuda
