// How many threads the host kernels may use.
#pragma once

#include <ATen/Parallel.h>

#include "cpu/host.h"

namespace rnnfast {

inline int host_threads() { return cpu::threads_of(at::get_num_threads()); }

}  // namespace rnnfast
