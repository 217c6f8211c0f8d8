// The compiled shapes of the kernels of one block and what each needs, in plain C++; tiles and
// slabs are device/slabs.h's.
//
// A block owns 8 sequences and all hidden units. Of each tile of a warp the first `held_slabs`
// slabs stay in registers, the others in shared memory.
//
// Forward: the matrix is W_hh, its rows grouped so that a thread has all gates of a unit
// (device/fragments.h): a group is 8 units in 2 tiles (LSTM), 16 in 3 (both GRUs), 16 in 1 (RNN).
// Warp w owns groups w, w + 8, … Backward: the matrix is W_hhᵀ, a tile 16 units, its columns the G
// gates of all units. Warp w owns tiles w, w + 8, …
#pragma once

#include "cells/list.h"
#include "cuda/device/slabs.h"

namespace rnnfast::cuda {

// A compiled shape: the groups (backward: tiles) of a warp at most, and the slabs of a tile in
// registers.
struct Shape {
  int groups;
  int held_slabs;
};

struct ShapeList {
  const Shape* at;
  int size;
};

namespace detail {

inline constexpr Shape kRnnForward16[] = {{1, 4}, {3, 6}};
inline constexpr Shape kLstmForward16[] = {{1, 2}, {2, 4}, {3, 3}};
inline constexpr Shape kGruForward16[] = {{1, 4}, {2, 3}};
inline constexpr Shape kRnnBackward16[] = {{1, 4}, {3, 5}};
inline constexpr Shape kLstmBackward16[] = {{1, 16}, {2, 7}};
inline constexpr Shape kGruBackward16[] = {{1, 12}, {2, 8}};
inline constexpr Shape kGruResetBeforeBackward16[] = {{1, 12}, {2, 7}};

inline constexpr Shape kRnnForward32[] = {{1, 8}, {2, 8}};
inline constexpr Shape kLstmForward32[] = {{1, 4}, {2, 4}};
inline constexpr Shape kGruForward32[] = {{1, 5}};
inline constexpr Shape kRnnBackward32[] = {{1, 8}, {2, 8}};
inline constexpr Shape kLstmBackward32[] = {{1, 16}};
inline constexpr Shape kGruBackward32[] = {{1, 16}};
inline constexpr Shape kGruResetBeforeBackward32[] = {{1, 14}};

template <int N>
constexpr ShapeList list(const Shape (&shapes)[N]) {
  return {shapes, N};
}

}  // namespace detail

// THE list of what is compiled, smallest first. RnnRelu runs in RnnTanh's kernels; a cell that is
// not here runs stepwise.
constexpr ShapeList shapes(Pass pass, CellId cell, Math math) {
  using namespace detail;
  const bool narrow = operand_bytes(math) == 2, forward = pass == Pass::kForward;
  switch (cell) {
    case CellId::kRnnTanh:
    case CellId::kRnnRelu:
      if (narrow) return forward ? list(kRnnForward16) : list(kRnnBackward16);
      return forward ? list(kRnnForward32) : list(kRnnBackward32);
    case CellId::kLstm:
      if (narrow) return forward ? list(kLstmForward16) : list(kLstmBackward16);
      return forward ? list(kLstmForward32) : list(kLstmBackward32);
    case CellId::kGru:
      if (narrow) return forward ? list(kGruForward16) : list(kGruBackward16);
      return forward ? list(kGruForward32) : list(kGruBackward32);
    case CellId::kGruResetBefore:
      if (narrow) return forward ? list(kGruForward16) : list(kGruResetBeforeBackward16);
      return forward ? list(kGruForward32) : list(kGruResetBeforeBackward32);
    default:
      return {nullptr, 0};
  }
}

// Rows of the resident matrix that belong together (forward), see above.
struct Group {
  int units;
  int tiles;
};

constexpr Group group_of(Pass pass, CellId cell) {
  const int gates = pass == Pass::kForward ? cell_info(cell).gates : 1;
  return gates % 4 == 0 ? Group{8, gates / 2} : Group{16, gates};
}

constexpr int64_t groups_of(Pass pass, CellId cell, int64_t H) {
  return detail::ceil_div(H, group_of(pass, cell).units);
}

// Slabs of a tile. A backward of two phases has two products: that of the second comes first.
constexpr int64_t slabs_of(Pass pass, CellId cell, Math math, int64_t H) {
  const int values = slab_values(math);
  if (pass == Pass::kForward) return detail::ceil_div(H, values);
  const CellInfo& info = cell_info(cell);
  int64_t slabs = 0;
  for (int p = 0; p < info.gate_phases(); ++p) {
    slabs += detail::ceil_div(info.phases[p].gates * H, values);
  }
  return slabs;
}

// Bytes from a row of operands (one sequence's) to the next.
constexpr int64_t row_stride(int64_t slabs) { return slabs * kSlabBytes + kRowPad; }

// Two sets of rows: in the buffer that is read, and the one that is written. A two-phase backward
// needs one.
constexpr int row_sets(Pass pass, CellId cell) {
  return pass == Pass::kBackward && cell_info(cell).gate_phases() == 2 ? 1 : 2;
}

constexpr int64_t spilled_slabs(Shape shape, int64_t slabs) {
  return slabs > shape.held_slabs ? slabs - shape.held_slabs : 0;
}

// Dynamic shared memory of a block.
constexpr int64_t shared_bytes(Pass pass, CellId cell, Math math, Shape shape, int64_t H) {
  const int64_t slabs = slabs_of(pass, cell, math, H);
  const int64_t tiles = groups_of(pass, cell, H) * group_of(pass, cell).tiles;
  return spilled_slabs(shape, slabs) * tiles * kSlabShared +
         row_sets(pass, cell) * kColumns * row_stride(slabs);
}

// Whether H hidden units fit this shape on a device that grants a block `shared_limit` bytes.
constexpr bool fits(Pass pass, CellId cell, Math math, Shape shape, int64_t H,
                    int64_t shared_limit) {
  return groups_of(pass, cell, H) <= int64_t(kWarps) * shape.groups &&
         shared_bytes(pass, cell, math, shape, H) <= shared_limit;
}

// The first shape that fits, or -1.
constexpr int first_fit(Pass pass, CellId cell, Math math, int64_t H, int64_t shared_limit) {
  const ShapeList list = shapes(pass, cell, math);
  for (int i = 0; i < list.size; ++i) {
    if (fits(pass, cell, math, list.at[i], H, shared_limit)) return i;
  }
  return -1;
}

}  // namespace rnnfast::cuda
