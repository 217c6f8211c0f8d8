// What a generated step computes with on a GPU (rnnfast/steps/cuda_text.py): float, one unit a
// thread. The operators' functions are those of single numbers.
#pragma once

#include "cells/functions.h"
#include "cuda/device/device.h"

namespace rnnfast::cuda::steps {

using S = float;  // of the generated text: a number of a sequence,
using V = float;  // and a unit's

using namespace rnnfast::functions;

RNNFAST_DEVICE bool negated(bool condition) { return !condition; }

}  // namespace rnnfast::cuda::steps
