#include "cuda/team/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_teams_backward<MmaBf16>(CellId cell, TeamChoice choice, const BackwardArgs& args,
                                    void* workspace, Stream stream) {
  launch_team_cell<Pass::kBackward, MmaBf16>(cell, choice, args, workspace, stream);
}

}  // namespace rnnfast::cuda
