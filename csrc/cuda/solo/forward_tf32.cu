#include "cuda/solo/dispatch.h"

namespace rnnfast::cuda {

template <>
void launch_forward<MmaTf32>(CellId cell, int shape, const ForwardArgs& args, Stream stream) {
  launch_cell<Pass::kForward, MmaTf32>(cell, shape, args, stream);
}

}  // namespace rnnfast::cuda
