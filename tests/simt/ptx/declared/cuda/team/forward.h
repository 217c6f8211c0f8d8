// In place of csrc/cuda/team/forward.h, see solo/forward.h.
#pragma once

#include "cuda/device/fragments.h"
#include "cuda/device/mma.h"
#include "cuda/team/arguments.h"
#include "cuda/untranslated.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
void team_forward(const WithTeam<ForwardArgs>) {
  ptx::untranslated(__PRETTY_FUNCTION__);
}

}  // namespace rnnfast::cuda
