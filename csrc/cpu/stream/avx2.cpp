#if defined(__x86_64__)
#define RNNFAST_ISA avx2
#define RNNFAST_VECTOR_BYTES 32
#include "cpu/stream/kernels.inc"
#endif
