// A step of a cell as the resident kernels call it.
#pragma once

#include "cuda/device/fragments.h"
#include "cuda/device/real.h"
#include "scan/time_clip.h"

namespace rnnfast::cuda {

// tanh or relu is a flag: Cell is RnnTanh for both.
template <template <class> class Cell, class R, int G, int N, int K>
RNNFAST_DEVICE void cell_forward(bool relu, const R (&gx)[G], const R (&gh)[G], const R (&s)[N],
                                 R (&s_new)[N], R (&saved)[K]) {
  if constexpr (kIdOf<Cell> == CellId::kRnnTanh) {
    if (relu) return RnnRelu<R>::forward(At<0>{}, gx, gh, s, s_new, saved);
  }
  Cell<R>::forward(At<0>{}, gx, gh, s, s_new, saved);
}

template <template <class> class Cell, int G, int N, int K>
RNNFAST_DEVICE void cell_backward(bool relu, const Real (&ds_new)[N], const Real (&saved)[K],
                                  const Real (&s)[N], Real (&dgx)[G], Real (&dgh)[G],
                                  Real (&ds)[N]) {
  if constexpr (kIdOf<Cell> == CellId::kRnnTanh) {
    if (relu) return RnnRelu<Real>::backward(At<0>{}, ds_new, saved, s, dgx, dgh, ds);
  }
  Cell<Real>::backward(At<0>{}, ds_new, saved, s, dgx, dgh, ds);
}

// By BackwardArgs::clip.
RNNFAST_DEVICE Real clipped(Real gradient, float clip) {
  if (clip == 0) return gradient;
  const float bound = clip < 0 ? -clip : clip;
  return limit_in_time(gradient.value, bound, clip < 0 ? 0.0f : bound);
}

}  // namespace rnnfast::cuda
