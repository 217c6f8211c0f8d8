#if defined(__x86_64__)
#define RNNFAST_ISA avx512_bf16
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_DOTS 1
#define RNNFAST_DOTS_NAME dots_avx512
#include "cpu/kernels.inc"
#endif
