// Dot products of bfloat16 and, for many rows, tiles of AMX; nothing where the compiler does not
// know them, which it is asked with the flags that begin with a question mark in sources.txt.
#if defined(__x86_64__)
#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define RNNFAST_ISA amx
#define RNNFAST_VECTOR_BYTES 64
#define RNNFAST_DOTS 1
#define RNNFAST_TILES 1
#define RNNFAST_DOTS_NAME tiles_amx
#include "cpu/kernels.inc"
#include "cpu/tile_check.h"

namespace rnnfast::cpu {
bool tiles_agree() { return amx::same_numbers<amx::NativeTiles, amx::EmulatedTiles>(); }
}  // namespace rnnfast::cpu
#else
#include "cpu/kernels.h"

namespace rnnfast::cpu {
const NarrowKernels<BFloat16, BFloat16> tiles_amx{};
bool tiles_agree() { return false; }
}  // namespace rnnfast::cpu
#endif
#endif
