// What the loop of generated cells and a step's text speak of: lanes, products, the rows at hand.
#pragma once

#include <cstdint>

#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA::steps {

constexpr int panel_units_of(int planes) { return planes == 1 ? kWide : planes == 2 ? 2 : 1; }

// How many lanes of a vector exist: all, or n.
struct Whole {
  template <class S>
  static Vec<S> load(const S* from) {
    return Vec<S>::load(from);
  }
  template <class S>
  static void store(Vec<S> v, S* to) {
    v.store(to);
  }
};
struct Lanes {
  int64_t n;
  template <class S>
  Vec<S> load(const S* from) const {
    return Vec<S>::load(from, n);
  }
  template <class S>
  void store(Vec<S> v, S* to) const {
    v.store(to, n);
  }
};

// A product of the generated step: `planes` outputs for each of `width` units, over K values; or
// block by block, each of its part of the units over its part of the values.
struct Product {
  int planes;
  int64_t width, K;
  int blocks;

  int64_t block_width() const { return width / blocks; }
  int64_t block_panels(int lanes) const {
    return divide_up(block_width(), panel_units_of(planes) * lanes);
  }
};

// What a product sums up: terms of K values each, of all blocks. Its views begin at `first`, of each
// output term by term.
template <int N>
struct Terms {
  int first, count;
  int64_t K[N];
};

// A thread's list of the sequences that are alive in the step at hand, and its rows of each buffer.
template <class S>
struct Live {
  int64_t n = 0;
  int64_t* b = nullptr;
  bool* reset = nullptr;
  S*** p = nullptr;      // p[buffer][i]
  S* scalars = nullptr;  // [i, count]
};

}  // namespace rnnfast::cpu::RNNFAST_ISA::steps
