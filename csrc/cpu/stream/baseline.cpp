#define RNNFAST_ISA baseline
#define RNNFAST_VECTOR_BYTES 16
#include "cpu/stream/kernels.inc"
