#include "cuda/solo/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_forward<MmaF16>(CellId cell, int shape, const ForwardArgs& args, Stream stream) {
  launch_cell<Pass::kForward, MmaF16>(cell, shape, args, stream);
}

}  // namespace rnnfast::cuda
