// What the kernels of teams are given beside the scan.
#pragma once

#include "cuda/device/arguments.h"

namespace rnnfast::cuda {

// All but the first two follow from the scan and these (shapes.h).
struct TeamArgs {
  int blocks = 1;                      // of a team
  int tiles = 1;                       // batch tiles of a team
  int units = 0;                       // of a block, team_units
  int rows = 0;                        // tiles of 16 rows of a block, team_tiles
  int slabs[2] = {0, 0};               // team_slabs of the matrix's parts; 0: there is no second
  int64_t row_bytes = 0;               // team_row_bytes
  unsigned char* workspace = nullptr;  // of grid teams: team_workspace bytes, zero
};

// One parameter of a kernel. Scan: ForwardArgs or BackwardArgs.
template <class Scan>
struct WithTeam {
  Scan scan;
  TeamArgs team;
};

}  // namespace rnnfast::cuda
