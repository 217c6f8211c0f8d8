// In place of csrc/cuda/team/backward.h, see solo/backward.h.
#pragma once

#include "cuda/device/fragments.h"
#include "cuda/device/mma.h"
#include "cuda/team/arguments.h"
#include "cuda/untranslated.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
void team_backward(const WithTeam<BackwardArgs>) {
  ptx::untranslated(__PRETTY_FUNCTION__);
}

}  // namespace rnnfast::cuda
