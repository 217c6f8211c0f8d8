#include "cuda/solo/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_backward<MmaTf32>(CellId cell, int shape, const BackwardArgs& args, Stream stream) {
  launch_cell<Pass::kBackward, MmaTf32>(cell, shape, args, stream);
}

}  // namespace rnnfast::cuda
