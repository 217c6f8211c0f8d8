// Launching the kernels of teams of blocks: all T steps of one or both directions of a layer in one
// launch.
#pragma once

#include "cuda/device/arguments.h"
#include "cuda/device/stream.h"
#include "cuda/team/shapes.h"

namespace rnnfast::cuda {

// A compiled kernel, team_shapes(pass, cell)[shape] of this kind and math, and how it is launched.
struct TeamChoice {
  TeamKind kind = TeamKind::kGrid;
  Math math = Math::kBf16;
  int shape = 0;
  int blocks = 1;  // of a team
  int teams = 1;   // of a direction; of a cluster launch, as many as there are batch tiles
  int tiles = 1;   // batch tiles of a team
};

enum class TeamAsk { kLaunch, kRoom };

// On `stream`, without a synchronisation. `workspace`: team_workspace bytes on the device, zero;
// null where that is 0. B = 0 launches nothing. Both throw std::invalid_argument where H or B do
// not fit the choice or where there is no such kernel, and std::runtime_error where the launch
// fails or, of grid teams, where the device can't run all blocks at once.
void launch_team_forward(CellId cell, TeamChoice choice, const ForwardArgs& args, void* workspace,
                         Stream stream);
void launch_team_backward(CellId cell, TeamChoice choice, const BackwardArgs& args, void* workspace,
                          Stream stream);

// How many blocks of such a kernel the current device has at once, whatever its grid: the driver's
// answer. Throws as the launches do where there is no such kernel.
int64_t team_room(Pass pass, CellId cell, TeamChoice choice, int64_t H);

}  // namespace rnnfast::cuda
