// From run-time numbers to the team kernels of one Mma: included by the thin .cu files that make
// them, one for each pass and Mma.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/team/backward.h"
#include "cuda/team/cluster.h"
#include "cuda/team/forward.h"
#include "cuda/team/grid.h"
#include "cuda/team/sequence.h"

namespace rnnfast::cuda {

template <class Args>
struct TeamLaunch {
  TeamChoice choice;
  WithTeam<Args> args;
  Stream stream;
};

namespace detail {

// Of grid teams: a block that is not on the device while others wait for it would never come.
template <class Args>
void require_resident(const Launch& how, void (*kernel)(Args)) {
  const int64_t resident = resident_blocks<Args>(how, kernel), all = how.grid_x * how.grid_y;
  if (resident >= all) return;
  throw std::runtime_error(std::string(how.name) + ": the device runs " + std::to_string(resident) +
                           " of its " + std::to_string(all) + " blocks at once");
}

template <class Args>
struct Prepared {
  Launch how;
  void (*kernel)(WithTeam<Args>) = nullptr;
};

template <Pass kPass, template <class> class Cell, class Mma, class Team, int kTiles, int kHeld,
          class Args>
Prepared<Args> prepare(const TeamLaunch<Args>& run) {
  constexpr TeamShape kSize = {kTiles, kHeld};
  const auto& scan = run.args.scan;
  const TeamChoice& choice = run.choice;
  Prepared<Args> prepared;
  Launch& how = prepared.how;
  how.grid_x = int64_t(choice.teams) * choice.blocks;
  how.grid_y = scan.directions;
  how.threads = kThreads;
  how.shared_bytes = int(team_shared_bytes(Team::kKind, kPass, kIdOf<Cell>, Mma::kMath, kSize,
                                           scan.H, choice.blocks, choice.tiles));
  how.cooperative = Team::kKind == TeamKind::kGrid;
  how.cluster_blocks = Team::kKind == TeamKind::kCluster ? choice.blocks : 1;
  if constexpr (kPass == Pass::kForward) {
    how.name = "team_forward";
    prepared.kernel = &team_forward<Cell, Mma, Team, kTiles, kHeld>;
  } else {
    how.name = "team_backward";
    prepared.kernel = &team_backward<Cell, Mma, Team, kTiles, kHeld>;
  }
  return prepared;
}

// What is asked of a kernel: a launch; or its room, the blocks that the device has at once.
template <class Args>
int64_t answer(TeamAsk ask, const TeamLaunch<Args>& run, const Prepared<Args>& prepared) {
  const auto& [how, kernel] = prepared;
  if (ask == TeamAsk::kRoom) return resident_blocks<WithTeam<Args>>(how, kernel);
  if (how.cooperative) require_resident<WithTeam<Args>>(how, kernel);
  launch(how, kernel, run.args, run.stream);
  return 0;
}

template <class Args>
[[noreturn]] void refuse_team(const TeamLaunch<Args>& run, const std::string& why) {
  throw std::invalid_argument("a team of " + std::to_string(run.choice.blocks) + " blocks, " +
                              std::to_string(run.choice.teams) + " teams of " +
                              std::to_string(run.choice.tiles) + " batch tiles, shape " +
                              std::to_string(run.choice.shape) + ": " + why);
}

// Fills what follows from the choice, and refuses one that can't be.
template <Pass kPass, class Args>
void complete(CellId cell, Math math, TeamLaunch<Args>& run) {
  const TeamChoice& c = run.choice;
  const auto& scan = run.args.scan;
  const TeamShapeList list = team_shapes(kPass, cell);
  if (list.size == 0) refuse_team(run, "no kernel for " + std::string(cell_info(cell).name));
  if (c.shape < 0 || c.shape >= list.size) refuse_team(run, "there is no such shape");
  if (c.blocks < 1 || c.teams < 1 || c.tiles < 1) refuse_team(run, "none may be below 1");
  if (!team_fits({c.kind, kPass, cell, math, list.at[c.shape]}, scan.H, c.blocks, c.tiles,
                 INT64_MAX)) {
    refuse_team(run, "hidden size " + std::to_string(scan.H) + " does not fit");
  }
  if (int64_t(c.teams) * c.tiles < ceil_div(scan.B, kColumns)) {
    refuse_team(run, "too few for a batch of " + std::to_string(scan.B));
  }
  TeamArgs& team = run.args.team;
  team.blocks = c.blocks, team.tiles = c.tiles;
  team.units = int(team_units(kPass, cell, scan.H, c.blocks));
  team.row_bytes = team_row_bytes(kPass, cell, math, scan.H);
  team.rows = int(team_tiles(kPass, cell, team.units));
  for (int part = 0; part < matrix_parts(kPass, cell); ++part) {
    team.slabs[part] = int(team_slabs(kPass, cell, math, scan.H, part));
  }
}

template <Pass kPass, template <class> class Cell, class Mma, class Team, class Args,
          int... kShapes>
int64_t ask_shape(TeamAsk ask, const TeamLaunch<Args>& run,
                  std::integer_sequence<int, kShapes...>) {
  constexpr TeamShapeList list = team_shapes(kPass, kIdOf<Cell>);
  Prepared<Args> found;
  ((run.choice.shape == kShapes
        ? void(found = prepare<kPass, Cell, Mma, Team, list.at[kShapes].tiles,
                               list.at[kShapes].held_slabs>(run))
        : void()),
   ...);
  return answer(ask, run, found);
}

template <Pass kPass, template <class> class Cell, class Mma, class Args>
int64_t ask_cell(TeamAsk ask, const TeamLaunch<Args>& run) {
  constexpr TeamShapeList list = team_shapes(kPass, kIdOf<Cell>);
  constexpr auto shapes = std::make_integer_sequence<int, list.size>();
  if (run.choice.kind == TeamKind::kGrid) {
    return ask_shape<kPass, Cell, Mma, GridTeam>(ask, run, shapes);
  }
  return ask_shape<kPass, Cell, Mma, ClusterTeam>(ask, run, shapes);
}

}  // namespace detail

template <Pass kPass, class Mma, class Args>
int64_t ask_team(TeamAsk ask, CellId cell, TeamChoice choice, const Args& args, void* workspace,
                 Stream stream) {
  if (args.B == 0) return 0;
  if (args.T > INT32_MAX / 2 || args.H > (1 << 20)) {
    throw std::invalid_argument("a scan of more than 2^30 steps, or 2^20 hidden units");
  }
  TeamLaunch<Args> run{choice, {args, {}}, stream};
  detail::complete<kPass>(cell, Mma::kMath, run);
  run.args.scan.relu = cell == CellId::kRnnRelu;
  run.args.team.workspace = static_cast<unsigned char*>(workspace);
  switch (cell) {
    case CellId::kRnnTanh:
    case CellId::kRnnRelu:
      return detail::ask_cell<kPass, RnnTanh, Mma>(ask, run);
    case CellId::kLstm:
      return detail::ask_cell<kPass, Lstm, Mma>(ask, run);
    case CellId::kGru:
      return detail::ask_cell<kPass, Gru, Mma>(ask, run);
    case CellId::kGruResetBefore:
      return detail::ask_cell<kPass, GruResetBefore, Mma>(ask, run);
    default:
      detail::refuse_team(run, "no kernel for " + std::string(cell_info(cell).name));
  }
}

// Defined in <pass>_<math>.cu.
template <class Mma>
int64_t ask_forward(TeamAsk ask, CellId cell, TeamChoice choice, const ForwardArgs& args,
                    void* workspace, Stream stream);
template <class Mma>
int64_t ask_backward(TeamAsk ask, CellId cell, TeamChoice choice, const BackwardArgs& args,
                     void* workspace, Stream stream);

}  // namespace rnnfast::cuda
