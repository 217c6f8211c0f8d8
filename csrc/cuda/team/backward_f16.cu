#include "cuda/team/dispatch.h"

namespace rnnfast::cuda {

template <>
int64_t ask_backward<MmaF16>(TeamAsk ask, CellId cell, TeamChoice choice, const BackwardArgs& args,
                             void* workspace, Stream stream) {
  return ask_team<Pass::kBackward, MmaF16>(ask, cell, choice, args, workspace, stream);
}

}  // namespace rnnfast::cuda
