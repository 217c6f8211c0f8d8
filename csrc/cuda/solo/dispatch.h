// From run-time numbers to the kernels of one Mma: included by the thin .cu files that make them,
// one for each pass and Mma, so that they compile side by side.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/solo/backward.h"
#include "cuda/solo/forward.h"
#include "cuda/solo/sequence.h"

namespace rnnfast::cuda {

namespace detail {

template <Pass kPass, template <class> class Cell, class Mma, int kShape>
struct Kernel {
  static constexpr Shape kSize = shapes(kPass, kIdOf<Cell>, Mma::kMath).at[kShape];

  template <class Args>
  static void run(const Args& args, Stream stream) {
    Launch how;
    how.grid_x = ceil_div(args.B, kColumns);
    how.grid_y = args.directions;
    how.threads = kThreads;
    how.shared_bytes = int(shared_bytes(kPass, kIdOf<Cell>, Mma::kMath, kSize, args.H));
    if constexpr (kPass == Pass::kForward) {
      how.name = "sequence_forward";
      launch(how, &sequence_forward<Cell, Mma, SoloTeam, kSize.groups, kSize.held_slabs>, args,
             stream);
    } else {
      how.name = "sequence_backward";
      launch(how, &sequence_backward<Cell, Mma, SoloTeam, kSize.groups, kSize.held_slabs>, args,
             stream);
    }
  }
};

template <Pass kPass, template <class> class Cell, class Mma, class Args, int... kShapes>
void run_shape(int shape, const Args& args, Stream stream, std::integer_sequence<int, kShapes...>) {
  const bool found =
      ((shape == kShapes &&
        (Kernel<kPass, Cell, Mma, kShapes>::template run<Args>(args, stream), true)) ||
       ...);
  if (!found) throw std::invalid_argument("there is no shape " + std::to_string(shape));
}

template <Pass kPass, template <class> class Cell, class Mma, class Args>
void run_cell(int shape, const Args& args, Stream stream) {
  constexpr ShapeList list = shapes(kPass, kIdOf<Cell>, Mma::kMath);
  if (shape >= 0 && shape < list.size &&
      groups_of(kPass, kIdOf<Cell>, args.H) > int64_t(kWarps) * list.at[shape].groups) {
    throw std::invalid_argument("hidden size " + std::to_string(args.H) +
                                " is too large for shape " + std::to_string(shape));
  }
  run_shape<kPass, Cell, Mma>(shape, args, stream, std::make_integer_sequence<int, list.size>());
}

}  // namespace detail

template <Pass kPass, class Mma, class Args>
void launch_cell(CellId cell, int shape, Args args, Stream stream) {
  if (args.B == 0) return;
  if (args.T > INT32_MAX - 2 || args.H > (1 << 20)) {
    throw std::invalid_argument("a scan of more than 2^31 - 3 steps, or 2^20 hidden units");
  }
  args.relu = cell == CellId::kRnnRelu;
  switch (cell) {
    case CellId::kRnnTanh:
    case CellId::kRnnRelu:
      return detail::run_cell<kPass, RnnTanh, Mma>(shape, args, stream);
    case CellId::kLstm:
      return detail::run_cell<kPass, Lstm, Mma>(shape, args, stream);
    case CellId::kGru:
      return detail::run_cell<kPass, Gru, Mma>(shape, args, stream);
    case CellId::kGruResetBefore:
      return detail::run_cell<kPass, GruResetBefore, Mma>(shape, args, stream);
    default:
      throw std::invalid_argument("no resident kernel computes " +
                                  std::string(cell_info(cell).name));
  }
}

// Defined in <pass>_<math>.cu.
template <class Mma>
void launch_forward(CellId cell, int shape, const ForwardArgs& args, Stream stream);
template <class Mma>
void launch_backward(CellId cell, int shape, const BackwardArgs& args, Stream stream);

}  // namespace rnnfast::cuda
