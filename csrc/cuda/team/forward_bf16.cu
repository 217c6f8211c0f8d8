#include "cuda/team/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_teams_forward<MmaBf16>(CellId cell, TeamChoice choice, const ForwardArgs& args,
                                   void* workspace, Stream stream) {
  launch_team_cell<Pass::kForward, MmaBf16>(cell, choice, args, workspace, stream);
}

}  // namespace rnnfast::cuda
