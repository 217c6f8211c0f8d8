// rnnfast::scan_forward on a GPU without Python: what rnnfast/backends/cuda does there.
#pragma once

#include "ops/scan.h"

namespace rnnfast::ops {

// As the op's schema has it; grad_clip_time is of backward.
Outputs cuda_scan(std::string cell, std::string kind, Tensor input, std::vector<Tensor> states,
                  std::vector<Tensor> weights, Optional lengths, Optional resets, bool reverse,
                  bool all_states, bool training, int64_t checkpoint_every, double grad_clip_time,
                  std::string backend);

// The input's part of the gates, biases included, as cuda/device/layout.h has it: [T, B, H, S] in
// memory of its own. `strict`: products of float32 without TF32.
Tensor slots_of_input(const Scan& scan, bool strict);

}  // namespace rnnfast::ops
