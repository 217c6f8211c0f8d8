// Tiles of AMX: eight registers of 16 rows of 64 bytes, and an instruction, TDPBF16PS, that adds the
// product of two of them in bfloat16 to a third in float. Two classes with the same functions: the
// processor's tiles, and their numbers and rules by plain C++, for tests and for a comparison before
// the first are used.
//
// sums [rows][columns] += x [rows][pairs] · weights [pairs][columns]: pairs lie as operand.h packs
// them, so a tile of weights is 16 steps of pairs of one vector of a panel.
#pragma once

#include "cpu/operand.h"

// RNNFAST_TILES: bfloat16 is multiplied by tiles where a product has many rows.
#ifndef RNNFAST_TILES
#define RNNFAST_TILES 0
#endif

namespace rnnfast::cpu::RNNFAST_ISA {

constexpr int kTiles = 8, kTileRows = 16, kTilePairs = 16, kTileSteps = 2 * kTilePairs;

// What LDTILECFG reads: of each tile the bytes of a row and the rows; both are 0 of one not in use.
struct alignas(64) TileShapes {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "as the processor reads it");

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define RNNFAST_NATIVE_TILES 1

// In assembly: GCC's intrinsics want a tile's number as a digit in the text, and do not say that they
// read memory. Tiles are this thread's from shape() on and given back at the end, since a thread
// that has some in use is slower to be switched.
class NativeTiles {
 public:
  NativeTiles() = default;
  NativeTiles(const NativeTiles&) = delete;
  NativeTiles& operator=(const NativeTiles&) = delete;
  ~NativeTiles() { __asm__ volatile("tilerelease"); }

  // All tiles are 0 then.
  void shape(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes)); }

  // Rows lie `step` bytes apart.
  template <int tile>
  void load(const void* from, int64_t step) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(from), "r"(step), "i"(tile)
                     : "memory");
  }
  template <int tile>
  void store(void* to, int64_t step) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(step), "i"(tile) : "memory");
  }
  template <int sums, int x, int weights>
  void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(x), "i"(weights));
  }
};
#endif

// As Intel's manual has the instruction: for an element of `sums` one sum of the first steps of all
// pairs and one of the second, in order, each product and sum rounded once to nearest even; the two
// are added, and the result to what was there. Subnormal numbers are 0, read and made. Columns are a
// vector's lanes. What the processor would refuse ends the program.
class EmulatedTiles {
 public:
  void shape(const TileShapes& shapes) {
    shapes_ = shapes;
    demand(shapes.palette == 1);
    for (int t = 0; t < kTiles; ++t) {
      demand(shapes.rows[t] <= kTileRows && shapes.row_bytes[t] <= 4 * kTilePairs);
      demand((shapes.rows[t] == 0) == (shapes.row_bytes[t] == 0));
    }
    __builtin_memset(words_, 0, sizeof(words_));
  }

  template <int tile>
  void load(const void* from, int64_t step) {
    demand(shapes_.rows[tile] > 0);
    for (int r = 0; r < shapes_.rows[tile]; ++r)
      __builtin_memcpy(words_[tile][r], static_cast<const char*>(from) + r * step, bytes(tile));
  }
  template <int tile>
  void store(void* to, int64_t step) {
    demand(shapes_.rows[tile] > 0);
    for (int r = 0; r < shapes_.rows[tile]; ++r)
      __builtin_memcpy(static_cast<char*>(to) + r * step, words_[tile][r], bytes(tile));
  }

  template <int sums, int x, int weights>
  void multiply() {
    constexpr int64_t kBytes = kWords * sizeof(Pair);
    demand(bytes(sums) == kBytes && bytes(weights) == kBytes);
    demand(shapes_.rows[sums] == shapes_.rows[x] && bytes(x) == 4 * shapes_.rows[weights]);
    const Pair(&w)[kTileRows][kTilePairs] = words_[weights];
    for (int r = 0; r < shapes_.rows[sums]; ++r) {
      Native first{}, second{};
      for (int k = 0; k < shapes_.rows[weights]; ++k) {
        const Native pair = (Native)(Unsigned{} + words_[x][r][k]);
        const Native columns = load_packed(w[k]);
        first = rounded_once(first, first_steps(pair), first_steps(columns));
        second = rounded_once(second, second_steps(pair), second_steps(columns));
      }
      float* const sum = reinterpret_cast<float*>(words_[sums][r]);
      Vec<float>(added(Vec<float>::load(sum).v, added(first, second))).store(sum);
    }
  }

 private:
  using Native = Vec<float>::Native;

  static void demand(bool kept) {
    if (!kept) __builtin_trap();
  }
  static Native added(Native a, Native b) {
    return without_subnormals(without_subnormals(a) + without_subnormals(b));
  }
  int64_t bytes(int tile) const { return shapes_.row_bytes[tile]; }

  TileShapes shapes_{0};
  alignas(64) Pair words_[kTiles][kTileRows][kTilePairs];
};

#if RNNFAST_TILES && defined(RNNFAST_NATIVE_TILES)
using Tiles = NativeTiles;
#else
using Tiles = EmulatedTiles;
#endif

}  // namespace rnnfast::cpu::RNNFAST_ISA
