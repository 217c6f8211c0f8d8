// The type of a stream, for host code that does not see device.h.
#pragma once

#if defined(RNNFAST_SIMT)
#include "cuda/device/device.h"  // the executor's
#else
#include <cuda_runtime_api.h>

namespace rnnfast::cuda {
using Stream = cudaStream_t;
}
#endif
