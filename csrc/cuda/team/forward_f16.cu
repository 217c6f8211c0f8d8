#include "cuda/team/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_teams_forward<MmaF16>(CellId cell, TeamChoice choice, const ForwardArgs& args,
                                  void* workspace, Stream stream) {
  launch_team_cell<Pass::kForward, MmaF16>(cell, choice, args, workspace, stream);
}

}  // namespace rnnfast::cuda
