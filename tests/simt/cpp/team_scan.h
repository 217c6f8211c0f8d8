// Forward and backward by the kernels of teams of blocks, as sequence_scan.h runs them.
#pragma once

#include <memory>
#include <vector>

#include "cuda/team/dispatch.h"
#include "sequence_scan.h"

namespace team_scan {

using namespace sequence_scan;

// How a layer is split, over so many blocks at most; each pass's shape is the first that has room.
struct Split {
  TeamKind kind;
  int blocks, teams, tiles;

  std::string label() const {
    return std::string(kind == TeamKind::kGrid ? "grid" : "cluster") + " of " +
           std::to_string(blocks) + ", " + std::to_string(teams) + " teams of " +
           std::to_string(tiles) + " tiles";
  }
};

// What a launch of grid teams exchanges through.
class Zeroed {
 public:
  Zeroed(const TeamChoice& choice, Pass pass, CellId cell, int64_t H, int directions) {
    const int64_t bytes = team_workspace(choice.kind, pass, cell, choice.math, H, choice.teams,
                                         choice.tiles, directions);
    lines_.resize((bytes + 127) / 128, Line{});
  }
  unsigned char* data() const {
    return lines_.empty() ? nullptr : const_cast<unsigned char*>(lines_[0].at);
  }

 private:
  struct alignas(128) Line {
    unsigned char at[128];
  };
  std::vector<Line> lines_;
};

// The largest shape of a cell, but with one slab of each tile in registers, so that a small layer
// too has weights in shared memory.
template <Pass kPass, template <class> class Cell, class Mma, class Team, class Args>
void launch_spilled(const Split& split, Args scan) {
  constexpr TeamShapeList kList = team_shapes(kPass, kIdOf<Cell>);
  scan.relu = false;
  TeamLaunch<Args> run{
      {split.kind, Mma::kMath, kList.size - 1, split.blocks, split.teams, split.tiles},
      {scan, {}},
      nullptr};
  run.choice.blocks = int(team_blocks(kPass, kIdOf<Cell>, scan.H, split.blocks));
  rnnfast::cuda::detail::complete<kPass>(kIdOf<Cell>, Mma::kMath, run);
  const Zeroed workspace(run.choice, kPass, kIdOf<Cell>, scan.H, scan.directions);
  run.args.team.workspace = workspace.data();
  using namespace rnnfast::cuda::detail;
  answer(TeamAsk::kLaunch, run,
         prepare<kPass, Cell, Mma, Team, kList.at[kList.size - 1].tiles, 1>(run));
}

// In strict fp32 unless told otherwise.
template <template <class> class Cell, class Team, class Mma = MmaFp32>
Launchers spilled(const Split& split) {
  return {
      [=](const ForwardArgs& args) {
        launch_spilled<Pass::kForward, Cell, Mma, Team>(split, args);
      },
      [=](const BackwardArgs& args) {
        launch_spilled<Pass::kBackward, Cell, Mma, Team>(split, args);
      },
  };
}

}  // namespace team_scan
