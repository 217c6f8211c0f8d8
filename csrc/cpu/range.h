// A part of a range of units, sequences or panels.
#pragma once

#include <cstdint>

namespace rnnfast::cpu::RNNFAST_ISA {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// Part i of n of [0, size), in multiples of `grain`.
inline Range part(int64_t size, int64_t grain, int64_t i, int64_t n) {
  const int64_t grains = (size + grain - 1) / grain;
  const int64_t begin = grains * i / n * grain, end = grains * (i + 1) / n * grain;
  return {begin < size ? begin : size, end < size ? end : size};
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
