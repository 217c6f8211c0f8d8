#include "cuda/solo/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_backward<MmaBf16>(CellId cell, int shape, const BackwardArgs& args, Stream stream) {
  launch_cell<Pass::kBackward, MmaBf16>(cell, shape, args, stream);
}

}  // namespace rnnfast::cuda
