#include "cuda/solo/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_forward<MmaBf16>(CellId cell, int shape, const ForwardArgs& args, Stream stream) {
  launch_cell<Pass::kForward, MmaBf16>(cell, shape, args, stream);
}

}  // namespace rnnfast::cuda
