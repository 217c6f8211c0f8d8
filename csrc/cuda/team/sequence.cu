#include <stdexcept>

#include "cuda/device/mma.h"
#include "cuda/team/sequence.h"

namespace rnnfast::cuda {

// Defined in <pass>_<math>.cu.
template <class Mma>
int64_t ask_forward(TeamAsk ask, CellId cell, TeamChoice choice, const ForwardArgs& args,
                    void* workspace, Stream stream);
template <class Mma>
int64_t ask_backward(TeamAsk ask, CellId cell, TeamChoice choice, const BackwardArgs& args,
                     void* workspace, Stream stream);

template <>
int64_t ask_forward<MmaBf16>(TeamAsk, CellId, TeamChoice, const ForwardArgs&, void*, Stream);
template <>
int64_t ask_forward<MmaF16>(TeamAsk, CellId, TeamChoice, const ForwardArgs&, void*, Stream);
template <>
int64_t ask_forward<MmaTf32>(TeamAsk, CellId, TeamChoice, const ForwardArgs&, void*, Stream);
template <>
int64_t ask_backward<MmaBf16>(TeamAsk, CellId, TeamChoice, const BackwardArgs&, void*, Stream);
template <>
int64_t ask_backward<MmaF16>(TeamAsk, CellId, TeamChoice, const BackwardArgs&, void*, Stream);
template <>
int64_t ask_backward<MmaTf32>(TeamAsk, CellId, TeamChoice, const BackwardArgs&, void*, Stream);

namespace {

int64_t ask(TeamAsk what, CellId cell, TeamChoice choice, const ForwardArgs& args, void* workspace,
            Stream stream) {
  switch (choice.math) {
    case Math::kBf16:
      return ask_forward<MmaBf16>(what, cell, choice, args, workspace, stream);
    case Math::kF16:
      return ask_forward<MmaF16>(what, cell, choice, args, workspace, stream);
    case Math::kTf32:
      return ask_forward<MmaTf32>(what, cell, choice, args, workspace, stream);
    case Math::kFp32:
      break;
  }
  throw std::invalid_argument("no team computes in strict fp32");
}

int64_t ask(TeamAsk what, CellId cell, TeamChoice choice, const BackwardArgs& args, void* workspace,
            Stream stream) {
  switch (choice.math) {
    case Math::kBf16:
      return ask_backward<MmaBf16>(what, cell, choice, args, workspace, stream);
    case Math::kF16:
      return ask_backward<MmaF16>(what, cell, choice, args, workspace, stream);
    case Math::kTf32:
      return ask_backward<MmaTf32>(what, cell, choice, args, workspace, stream);
    case Math::kFp32:
      break;
  }
  throw std::invalid_argument("no team computes in strict fp32");
}

template <class Args>
int64_t room_of(CellId cell, TeamChoice choice, int64_t H) {
  Args args;
  args.T = 1, args.H = H, args.directions = 1;
  args.B = int64_t(choice.teams) * choice.tiles * kColumns;
  return ask(TeamAsk::kRoom, cell, choice, args, nullptr, Stream());
}

}  // namespace

void launch_team_forward(CellId cell, TeamChoice choice, const ForwardArgs& args, void* workspace,
                         Stream stream) {
  ask(TeamAsk::kLaunch, cell, choice, args, workspace, stream);
}

void launch_team_backward(CellId cell, TeamChoice choice, const BackwardArgs& args, void* workspace,
                          Stream stream) {
  ask(TeamAsk::kLaunch, cell, choice, args, workspace, stream);
}

int64_t team_room(Pass pass, CellId cell, TeamChoice choice, int64_t H) {
  return pass == Pass::kForward ? room_of<ForwardArgs>(cell, choice, H)
                                : room_of<BackwardArgs>(cell, choice, H);
}

}  // namespace rnnfast::cuda
