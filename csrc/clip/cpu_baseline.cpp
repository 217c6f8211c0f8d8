// What every processor of the target has (x86-64: SSE2; others: 128-bit vectors of their own).
#define RNNFAST_ISA baseline
#define RNNFAST_VECTOR_BYTES 16
#include "clip/cpu.inc"
