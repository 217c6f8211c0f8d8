// In place of csrc/cuda/team_forward.h, see sequence_forward.h.
#pragma once

#include "cuda/fragments.h"
#include "cuda/mma.h"
#include "cuda/team_arguments.h"
#include "cuda/untranslated.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
void team_forward(const WithTeam<ForwardArgs>) {
  ptx::untranslated(__PRETTY_FUNCTION__);
}

}  // namespace rnnfast::cuda
