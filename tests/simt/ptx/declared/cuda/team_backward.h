// In place of csrc/cuda/team_backward.h, see sequence_backward.h.
#pragma once

#include "cuda/fragments.h"
#include "cuda/mma.h"
#include "cuda/team_arguments.h"
#include "cuda/untranslated.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma, class Team, int kTiles, int kHeld>
void team_backward(const WithTeam<BackwardArgs>) {
  ptx::untranslated(__PRETTY_FUNCTION__);
}

}  // namespace rnnfast::cuda
