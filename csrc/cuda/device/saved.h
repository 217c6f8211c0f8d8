// Reading and writing a unit's slots (layout.h), and single values, in a storage dtype S: Bf16,
// F16, float or double.
#pragma once

#include <type_traits>

#include "cuda/device/device.h"
#include "cuda/device/layout.h"

namespace rnnfast::cuda {

template <class S>
inline constexpr bool kIs16Bit = sizeof(S) == 2;

// What a storage dtype is computed in.
template <class S>
using Wide = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class S>
RNNFAST_DEVICE Wide<S> widen(S value) {
  if constexpr (kIs16Bit<S>) {
    return to_float(value);
  } else {
    return value;
  }
}

template <class S>
RNNFAST_DEVICE S narrow(Wide<S> value) {
  if constexpr (kIs16Bit<S>) {
    return from_float<S>(value);
  } else {
    return value;
  }
}

// A state, or its gradient: the one that another scan left unrounded, where there is one.
template <class S>
RNNFAST_DEVICE float load_carried(const S* stored, const float* carried, int64_t at) {
  return carried != nullptr ? load_once(carried + at) : widen(load_once(stored + at));
}
template <class S>
RNNFAST_DEVICE void store_carried(S* stored, float* carried, int64_t at, float value) {
  store(stored + at, narrow<S>(value));
  if (carried != nullptr) store(carried + at, value);
}

// The slots of one unit as they lie in memory, loaded and stored at once.
template <class S, int N>
struct alignas(sizeof(S) * N > 16 ? 16 : sizeof(S) * N) SlotVector {
  S at[N];
};

// The same in whole registers: what is loaded ahead must not be taken apart, which would wait for
// it. So the halves of a word are numbers here, not memory that the compiler may split.
template <class S, int N>
struct Packed {
  static constexpr bool kHalves = sizeof(S) == 2 && N % 2 == 0;
  using Word = std::conditional_t<kHalves, uint32_t, S>;
  alignas(SlotVector<S, N>) Word at[kHalves ? N / 2 : N];

  RNNFAST_DEVICE static Packed of(const SlotVector<S, N>& values) {
    Packed packed;
    RNNFAST_UNROLL
    for (int k = 0; k < N; ++k) {
      if constexpr (!kHalves) {
        packed.at[k] = values.at[k];
      } else if (k % 2 == 0) {
        packed.at[k / 2] = pack2(values.at[k], values.at[k + 1]);
      }
    }
    return packed;
  }
  RNNFAST_DEVICE SlotVector<S, N> values() const {
    SlotVector<S, N> values;
    RNNFAST_UNROLL
    for (int k = 0; k < N; ++k) {
      if constexpr (kHalves) {
        values.at[k] = {uint16_t(at[k / 2] >> k % 2 * 16)};
      } else {
        values.at[k] = at[k];
      }
    }
    return values;
  }
};

// 16-bit storage keeps gates as fixed point, codes 0 … 65534: of a sigmoid in steps of 1/65534, of
// a tanh in steps of 1/32767 from -1 on. 65535 is NaN.
//
// Between 2^23 and 2^24 floats are the whole numbers, so the last bits of 2^23 + x are x, rounded,
// and those of a NaN, as multiply_add makes it, all set: no conversion instruction, of which an SM
// does few at a time.
template <Range kRange>
struct FixedPoint {
  static constexpr bool kIsTanh = kRange == Range::kTanh;
  static constexpr float kOne = kIsTanh ? 32767.0f : 65534.0f;
  static constexpr float kZero = 8388608.0f + (kIsTanh ? kOne : 0.0f);  // 0, as it stands there
  static constexpr uint32_t kNan = 65535, kTop = 0x4B000000u;           // 2^23

  RNNFAST_DEVICE static uint16_t encode(float value) {
    return uint16_t(bits_of(multiply_add(value, kOne, kZero)));
  }
  RNNFAST_DEVICE static float decode(uint16_t code) {
    const float value = (float_of(kTop | code) - kZero) * (1.0f / kOne);
    return code == kNan ? float_of(0x7FC00000u) : value;
  }
};

// A value of a slot of this range, and back.

template <class S, Range kRange>
RNNFAST_DEVICE S encode_slot(Wide<S> value) {
  if constexpr (!kIs16Bit<S> || kRange == Range::kPlain) {
    return narrow<S>(value);
  } else {
    return S{FixedPoint<kRange>::encode(value)};
  }
}

template <class S, Range kRange>
RNNFAST_DEVICE Wide<S> decode_slot(S stored) {
  if constexpr (!kIs16Bit<S> || kRange == Range::kPlain) {
    return widen(stored);
  } else {
    return FixedPoint<kRange>::decode(stored.bits);
  }
}

namespace detail {

template <template <class> class Cell, int kSlot, class S, class V, int N>
RNNFAST_DEVICE void encode_from(const V (&values)[N], SlotVector<S, N>& out) {
  if constexpr (kSlot < N) {
    out.at[kSlot] = encode_slot<S, kSlotRange<Cell, kSlot>>(Wide<S>(values[kSlot]));
    encode_from<Cell, kSlot + 1>(values, out);
  }
}

template <template <class> class Cell, int kSlot, class S, class V, int N>
RNNFAST_DEVICE void decode_from(const SlotVector<S, N>& stored, V (&values)[N]) {
  if constexpr (kSlot < N) {
    values[kSlot] = V(decode_slot<S, kSlotRange<Cell, kSlot>>(stored.at[kSlot]));
    decode_from<Cell, kSlot + 1>(stored, values);
  }
}

}  // namespace detail

// What forward saves of a unit, and as backward reads it.
template <template <class> class Cell, class S, class V, int N>
RNNFAST_DEVICE SlotVector<S, N> encode_saved(const V (&values)[N]) {
  SlotVector<S, N> out;
  detail::encode_from<Cell, 0, S>(values, out);
  return out;
}

template <template <class> class Cell, class S, class V, int N>
RNNFAST_DEVICE void decode_saved(const SlotVector<S, N>& stored, V (&values)[N]) {
  detail::decode_from<Cell, 0, S>(stored, values);
}

}  // namespace rnnfast::cuda
