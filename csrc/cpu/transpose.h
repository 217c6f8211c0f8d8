// A square of values, as many as a vector has lanes each way, turned in registers.
#pragma once

#include "cpu/vec.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define RNNFAST_TRANSPOSES 1
#endif
#endif

namespace rnnfast::cpu::RNNFAST_ISA {

#ifdef RNNFAST_TRANSPOSES

constexpr bool kTransposes = true;

template <int... i>
struct Sequence {};
template <int n, int... i>
struct SequenceOf : SequenceOf<n - 1, n - 1, i...> {};
template <int... i>
struct SequenceOf<0, i...> {
  using Type = Sequence<i...>;
};

// The lanes of a and b in turn, from lane `first` on.
template <int first, class S, int... i>
inline Vec<S> interleaved(Vec<S> a, Vec<S> b, Sequence<i...>) {
  constexpr int L = Vec<S>::kLanes;
  return Vec<S>(__builtin_shufflevector(a.v, b.v, (first + i / 2 + i % 2 * L)...));
}

// Lane l of x[k] and lane k of x[l] change places.
template <class S, int L>
inline void transpose(Vec<S> (&x)[L]) {
  constexpr typename SequenceOf<L>::Type lanes{};
  for (int step = 1; step < L; step *= 2) {
    Vec<S> y[L];
#pragma GCC unroll 16
    for (int k = 0; k < L / 2; ++k) {
      y[2 * k] = interleaved<0>(x[k], x[k + L / 2], lanes);
      y[2 * k + 1] = interleaved<L / 2>(x[k], x[k + L / 2], lanes);
    }
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) x[k] = y[k];
  }
}

#else  // GCC before 12

constexpr bool kTransposes = false;

template <class S, int L>
inline void transpose(Vec<S> (&)[L]) {}

#endif

}  // namespace rnnfast::cpu::RNNFAST_ISA
