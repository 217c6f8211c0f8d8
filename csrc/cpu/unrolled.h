// A loop whose index is a constant.
#pragma once

namespace rnnfast::cpu::RNNFAST_ISA {

template <int i>
struct Index {
  constexpr operator int() const { return i; }
};

// f(Index<i>) for i = 0 … N - 1.
template <int N, class F>
inline void unrolled(const F& f) {
  if constexpr (N > 0) {
    unrolled<N - 1>(f);
    f(Index<N - 1>{});
  }
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
