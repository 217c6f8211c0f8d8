#include <stdexcept>

#include "cuda/device/mma.h"
#include "cuda/team/sequence.h"

namespace rnnfast::cuda {

// Defined in <pass>_<math>.cu.
template <class Mma>
void launch_teams_forward(CellId cell, TeamChoice choice, const ForwardArgs& args, void* workspace,
                          Stream stream);
template <class Mma>
void launch_teams_backward(CellId cell, TeamChoice choice, const BackwardArgs& args,
                           void* workspace, Stream stream);

template <>
void launch_teams_forward<MmaBf16>(CellId, TeamChoice, const ForwardArgs&, void*, Stream);
template <>
void launch_teams_forward<MmaF16>(CellId, TeamChoice, const ForwardArgs&, void*, Stream);
template <>
void launch_teams_forward<MmaTf32>(CellId, TeamChoice, const ForwardArgs&, void*, Stream);
template <>
void launch_teams_backward<MmaBf16>(CellId, TeamChoice, const BackwardArgs&, void*, Stream);
template <>
void launch_teams_backward<MmaF16>(CellId, TeamChoice, const BackwardArgs&, void*, Stream);
template <>
void launch_teams_backward<MmaTf32>(CellId, TeamChoice, const BackwardArgs&, void*, Stream);

void launch_team_forward(CellId cell, TeamChoice choice, const ForwardArgs& args, void* workspace,
                         Stream stream) {
  switch (choice.math) {
    case Math::kBf16:
      return launch_teams_forward<MmaBf16>(cell, choice, args, workspace, stream);
    case Math::kF16:
      return launch_teams_forward<MmaF16>(cell, choice, args, workspace, stream);
    case Math::kTf32:
      return launch_teams_forward<MmaTf32>(cell, choice, args, workspace, stream);
    case Math::kFp32:
      break;
  }
  throw std::invalid_argument("no team computes in strict fp32");
}

void launch_team_backward(CellId cell, TeamChoice choice, const BackwardArgs& args, void* workspace,
                          Stream stream) {
  switch (choice.math) {
    case Math::kBf16:
      return launch_teams_backward<MmaBf16>(cell, choice, args, workspace, stream);
    case Math::kF16:
      return launch_teams_backward<MmaF16>(cell, choice, args, workspace, stream);
    case Math::kTf32:
      return launch_teams_backward<MmaTf32>(cell, choice, args, workspace, stream);
    case Math::kFp32:
      break;
  }
  throw std::invalid_argument("no team computes in strict fp32");
}

}  // namespace rnnfast::cuda
