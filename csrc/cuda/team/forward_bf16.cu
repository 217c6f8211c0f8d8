#include "cuda/team/dispatch.h"

namespace rnnfast::cuda {

template <>
int64_t ask_forward<MmaBf16>(TeamAsk ask, CellId cell, TeamChoice choice, const ForwardArgs& args,
                             void* workspace, Stream stream) {
  return ask_team<Pass::kForward, MmaBf16>(ask, cell, choice, args, workspace, stream);
}

}  // namespace rnnfast::cuda
