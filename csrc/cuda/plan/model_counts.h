// How many instructions a warp of the kernels runs in a step (of one batch tile), as
// `python -m benchmarks.latency` reads them from machine code (sm_90, 16 bit), put into round
// numbers: counted, not measured, and good for a choice between strategies. Where a kernel's own
// code was counted that number is given to the model instead.
#pragma once

#include <algorithm>

#include "cuda/solo/shapes.h"
#include "cuda/team/shapes.h"

namespace rnnfast::cuda {

// held, streamed: products (mma or FFMA instructions) of the warp whose slab of the matrix is in
// registers, or comes from shared memory.
struct WarpProducts {
  double held = 0;
  double streamed = 0;
};

inline constexpr int kSlabThreadBytes = 4 * kSlabWords;  // a thread's share of a slab

namespace detail {

// A product with its share of the operands' loads; one whose slab comes from shared memory.
inline double product_instructions(Math math, const WarpProducts& products, double per_streamed) {
  if (math == Math::kFp32) return 1.1 * products.held + 1.25 * products.streamed;
  return 1.25 * products.held + per_streamed * products.streamed;
}

inline double phases_factor(CellId cell) { return cell_info(cell).gate_phases() == 2 ? 1.4 : 1; }

// Of a (unit, sequence): gate math, and loads and stores.
inline double pair_instructions(Pass pass, CellId cell) {
  return (pass == Pass::kForward ? 25 + 19 * cell_info(cell).gates
                                 : 43 + 20 * cell_info(cell).gates);
}

}  // namespace detail

// How a kernel reads the matrix.
struct LoadWay {
  double bytes;         // of a load
  double instructions;  // of a warp for each: where it is, whether it is there, its words' places
  double slabs_ahead;   // on their way at once, of those that go to shared memory
  bool held_at_once;    // so are all that stay in registers
};

// 16 bytes at a time where every row of the matrix begins at a multiple of that, else a value.
// Instructions as counted in the machine code of all shapes (sm_90; docs/cuda.md has the ranges).
inline LoadWay load_way(bool team, Pass pass, Math math, int64_t value_bytes, int64_t columns) {
  constexpr int64_t kWide = 16;
  if (columns * value_bytes % kWide != 0) return {double(value_bytes), 20, 1, false};
  const bool forward = pass == Pass::kForward;
  if (math == Math::kFp32) return {kWide, forward ? 25.0 : 43.0, 4, true};
  if (math == Math::kTf32) return {kWide, forward && team ? 40.0 : 52.0, 4, true};
  if (!forward) return {kWide, 66, 4, true};
  return {kWide, team ? 20.0 : 40.0, 4, true};
}

// Steps between asking for gates, or resets, and needing them: as the kernels are written.
inline constexpr double kFetchedAhead = 2;

// Of a block in an exchange of a grid team: its addition to the counter, and the poll that sees the
// last one. One thread of a block polls (team/grid.h).
inline constexpr double kLineRequests = 2;

// Of the resident kernels; pairs: (unit, sequence) of a thread.
inline double solo_instructions(Pass pass, CellId cell, Math math, double pairs,
                                const WarpProducts& products) {
  const int gates = cell_info(cell).gates;
  const double base = pass == Pass::kForward ? 210 : 50 + 155 * gates;
  return detail::phases_factor(cell) * (base + detail::pair_instructions(pass, cell) * pairs) +
         detail::product_instructions(math, products, 9);
}

// Of a team's kernels.
inline double team_instructions(TeamKind kind, Pass pass, CellId cell, Math math, double pairs,
                                const WarpProducts& products) {
  const double push = kind == TeamKind::kCluster ? 60 : 0;  // into the peers' shared memory
  const double base = (pass == Pass::kForward ? 450 : 600) + push;
  const double own = detail::pair_instructions(pass, cell) * std::max(pairs, 1.0);
  return detail::phases_factor(cell) * (base + own) +
         detail::product_instructions(math, products, 5);
}

}  // namespace rnnfast::cuda
