#if defined(__x86_64__)
#define RNNFAST_ISA avx512
#define RNNFAST_VECTOR_BYTES 64
#include "cpu/stream/kernels.inc"
#endif
