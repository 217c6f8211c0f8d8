// Forward and backward by the kernels of teams of blocks, as sequence_scan.h runs them: in bf16, and
// in strict fp32, which the library has not but which shows the smallest mistake. (The Python matrix
// runs the others.)
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

inline TeamChoice choice_of(const Split& split, Pass pass, CellId cell, Math math, int64_t H) {
  const TeamShapeList list = team_shapes(pass, cell);
  const int blocks = int(team_blocks(pass, cell, H, split.blocks));
  for (int i = 0; i < list.size; ++i) {
    if (team_fits({split.kind, pass, cell, math, list.at[i]}, H, blocks, split.tiles, 227 * 1024)) {
      return {split.kind, math, i, blocks, split.teams, split.tiles};
    }
  }
  throw std::invalid_argument("no shape has room for H = " + std::to_string(H));
}

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

template <Pass kPass, class Args>
void launch_of(CellId cell, const TeamChoice& choice, const Args& args) {
  const Zeroed workspace(choice, kPass, cell, args.H, args.directions);
  void* zero = workspace.data();
  switch (choice.math) {
    case Math::kBf16:
      ask_team<kPass, MmaBf16>(TeamAsk::kLaunch, cell, choice, args, zero, nullptr);
      return;
    case Math::kFp32:
      ask_team<kPass, MmaFp32>(TeamAsk::kLaunch, cell, choice, args, zero, nullptr);
      return;
    default:
      throw std::invalid_argument("the C++ tests have bf16 and fp32 only");
  }
}

inline Launchers of_teams(CellId cell, Math math, int64_t H, const Split& split) {
  const TeamChoice forward = choice_of(split, Pass::kForward, cell, math, H);
  const TeamChoice backward = choice_of(split, Pass::kBackward, cell, math, H);
  return {
      [=](const ForwardArgs& args) { launch_of<Pass::kForward>(cell, forward, args); },
      [=](const BackwardArgs& args) { launch_of<Pass::kBackward>(cell, backward, args); },
  };
}

// The largest shape of a cell, but with one slab of each tile in registers, so that a small layer
// too has weights in shared memory.
template <Pass kPass, template <class> class Cell, class Mma>
struct Spilled {
  static constexpr TeamShapeList kList = team_shapes(kPass, kIdOf<Cell>);
  static constexpr TeamShape kShape = {kList.at[kList.size - 1].tiles, 1};

  template <class Args>
  static void launch_on(const Split& split, Args scan) {
    scan.relu = false;
    if (split.kind == TeamKind::kGrid) {
      launch_as<GridTeam>(split, scan);
    } else {
      launch_as<ClusterTeam>(split, scan);
    }
  }

 private:
  template <class Team, class Args>
  static void launch_as(const Split& split, const Args& scan) {
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
           prepare<kPass, Cell, Mma, Team, kShape.tiles, kShape.held_slabs>(run));
  }
};

template <template <class> class Cell, class Mma = MmaFp32>
Launchers spilled_cell(const Split& split) {
  return {
      [=](const ForwardArgs& args) { Spilled<Pass::kForward, Cell, Mma>::launch_on(split, args); },
      [=](const BackwardArgs& args) {
        Spilled<Pass::kBackward, Cell, Mma>::launch_on(split, args);
      },
  };
}

// In strict fp32.
inline Launchers spilled(CellId cell, const Split& split) {
  if (cell == CellId::kRnnTanh) return spilled_cell<RnnTanh>(split);
  if (cell == CellId::kLstm) return spilled_cell<Lstm>(split);
  if (cell == CellId::kGru) return spilled_cell<Gru>(split);
  return spilled_cell<GruResetBefore>(split);
}

}  // namespace team_scan
