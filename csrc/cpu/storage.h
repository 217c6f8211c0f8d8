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

template <class X>
struct Stored {
  using Type = X;
};

// body(Stored<X>{}) of a dtype that is one of these; Type names them as torch does.
template <class Type, class Body>
auto with_storage(Type dtype, const Body& body) {
  switch (dtype) {
    case Type::Float:
      return body(Stored<float>{});
    case Type::BFloat16:
      return body(Stored<BFloat16>{});
    case Type::Half:
      return body(Stored<Half>{});
    default:
      return body(Stored<double>{});
  }
}

}  // namespace rnnfast::cpu
