// Poisoning device memory, so that a test sees which outputs a kernel left unwritten. No torch
// headers.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace rnnfast::cuda {

// Sets every bit of data[0 .. bytes) on `stream`: a NaN in fp16, bf16, fp32 and fp64, with a
// payload that no arithmetic on the device yields. `data` is device memory; bytes = 0 launches
// nothing. Throws std::runtime_error where the launch fails.
void poison(void* data, std::int64_t bytes, cudaStream_t stream);

}  // namespace rnnfast::cuda
