// A small product by two classes of tiles, to the bit: what runs in a process before it uses the
// processor's.
#pragma once

#include "cpu/tile_product.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// Numbers near one another, so that roundings meet, some of them subnormal.
class CheckNumbers {
 public:
  BFloat16 next() {
    state_ = state_ * 1664525u + 1013904223u;
    const uint32_t bits = state_ >> 16, exponent = bits % 97 == 0 ? 0 : 118 + (bits >> 7) % 12;
    return {uint16_t((bits & 0x807fu) | exponent << 7)};
  }

 private:
  uint32_t state_ = 1;
};

// Two segments of an odd and an even number of steps, of more than one tile and with a rest; of
// rows at one distance, and at several; in one group and two shapes.
template <class Left, class Right>
bool same_numbers() {
  constexpr int L = Vec<float>::kLanes, NV = 4, kRows = kTileRows;
  constexpr int64_t kSteps[2] = {70, 43}, kMost = 72, kPairs = 35 + 22;
  BFloat16 x[2][kRows + 1][kMost];
  alignas(64) Pair panel[kPairs][NV][L];
  alignas(64) float bias[NV][L], sums[2][kRows][NV][L];
  CheckNumbers numbers;
  for (auto& segment : x) {
    for (auto& row : segment) {
      for (BFloat16& value : row) value = numbers.next();
    }
  }
  for (int64_t k = 0; k < kPairs; ++k) {
    for (int64_t column = 0; column < NV * L; ++column) {
      const Pair second =
          k + 1 == kPairs ? 0 : numbers.next().bits;  // of an odd step there is none
      panel[k][column / L][column % L] = numbers.next().bits | second << 16;
    }
  }
  for (auto& vector : bias) {
    for (float& value : vector) {
      const Pair bits = Pair(numbers.next().bits) << 16;
      __builtin_memcpy(&value, &bits, sizeof(value));
    }
  }
  constexpr int64_t kGroups[2] = {kRows, 5};
  for (const int64_t n : kGroups) {
    for (int uneven = 0; uneven < 2; ++uneven) {
      const BFloat16* rows[2][kRows];
      for (int64_t r = 0; r < n; ++r) {
        for (int s = 0; s < 2; ++s) rows[s][r] = x[s][r + (uneven && r > 2)];
      }
      const Segment<BFloat16> segments[2] = {{rows[0], kSteps[0], 2}, {rows[1], kSteps[1]}};
      TileProduct<Left>().template run<NV>(segments, 0, n, panel[0][0], bias[0], sums[0][0][0]);
      TileProduct<Right>().template run<NV>(segments, 0, n, panel[0][0], bias[0], sums[1][0][0]);
      if (__builtin_memcmp(sums[0], sums[1], n * sizeof(sums[0][0])) != 0) return false;
    }
  }
  return true;
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
