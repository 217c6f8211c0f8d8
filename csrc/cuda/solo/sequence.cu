#include <stdexcept>

#include "cuda/device/mma.h"
#include "cuda/solo/sequence.h"

namespace rnnfast::cuda {

// Defined in <pass>_<math>.cu.
template <class Mma>
void launch_forward(CellId cell, int shape, const ForwardArgs& args, Stream stream);
template <class Mma>
void launch_backward(CellId cell, int shape, const BackwardArgs& args, Stream stream);

template <>
void launch_forward<MmaBf16>(CellId, int, const ForwardArgs&, Stream);
template <>
void launch_forward<MmaF16>(CellId, int, const ForwardArgs&, Stream);
template <>
void launch_forward<MmaTf32>(CellId, int, const ForwardArgs&, Stream);
template <>
void launch_forward<MmaFp32>(CellId, int, const ForwardArgs&, Stream);
template <>
void launch_backward<MmaBf16>(CellId, int, const BackwardArgs&, Stream);
template <>
void launch_backward<MmaF16>(CellId, int, const BackwardArgs&, Stream);
template <>
void launch_backward<MmaTf32>(CellId, int, const BackwardArgs&, Stream);
template <>
void launch_backward<MmaFp32>(CellId, int, const BackwardArgs&, Stream);

void launch_sequence_forward(CellId cell, SoloChoice choice, const ForwardArgs& args,
                             Stream stream) {
  switch (choice.math) {
    case Math::kBf16:
      return launch_forward<MmaBf16>(cell, choice.shape, args, stream);
    case Math::kF16:
      return launch_forward<MmaF16>(cell, choice.shape, args, stream);
    case Math::kTf32:
      return launch_forward<MmaTf32>(cell, choice.shape, args, stream);
    case Math::kFp32:
      return launch_forward<MmaFp32>(cell, choice.shape, args, stream);
  }
  throw std::invalid_argument("not a Math");
}

void launch_sequence_backward(CellId cell, SoloChoice choice, const BackwardArgs& args,
                              Stream stream) {
  switch (choice.math) {
    case Math::kBf16:
      return launch_backward<MmaBf16>(cell, choice.shape, args, stream);
    case Math::kF16:
      return launch_backward<MmaF16>(cell, choice.shape, args, stream);
    case Math::kTf32:
      return launch_backward<MmaTf32>(cell, choice.shape, args, stream);
    case Math::kFp32:
      return launch_backward<MmaFp32>(cell, choice.shape, args, stream);
  }
  throw std::invalid_argument("not a Math");
}

}  // namespace rnnfast::cuda
