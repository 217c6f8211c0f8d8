// Launching the resident kernels: all T steps of one or both directions of a layer in one launch.
#pragma once

#include "cuda/device/arguments.h"
#include "cuda/device/stream.h"
#include "cuda/solo/shapes.h"

namespace rnnfast::cuda {

// A compiled kernel: the way of the product, and an index into shapes(pass, cell, math).
struct SoloChoice {
  Math math = Math::kFp32;
  int shape = 0;
};

// On `stream`, without a synchronisation. The tensors' dtype is that of `choice.math` (fp32 for
// tf32). Both throw std::invalid_argument where H does not fit the shape, and std::runtime_error
// where the launch fails. B = 0 launches nothing.
void launch_sequence_forward(CellId cell, SoloChoice choice, const ForwardArgs& args,
                             Stream stream);
void launch_sequence_backward(CellId cell, SoloChoice choice, const BackwardArgs& args,
                              Stream stream);

}  // namespace rnnfast::cuda
