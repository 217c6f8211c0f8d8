// What tensors hold: float, double, or one of two 16-bit formats, whose numbers are computed as
// float.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rnnfast::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class X>
inline constexpr bool kNarrow = std::is_same_v<X, BFloat16> || std::is_same_v<X, Half>;

// What numbers stored as X are computed in.
template <class X>
using Wide = std::conditional_t<kNarrow<X>, float, X>;

}  // namespace rnnfast::cpu
