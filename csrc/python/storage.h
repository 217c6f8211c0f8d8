// What a tensor of the host's kernels holds, as a type of theirs.
#pragma once

#include "cpu/storage.h"
#include "python/bind.h"

namespace rnnfast::python {

template <class X>
struct Stored {
  using Type = X;
};

inline void check_stored(ScalarType dtype) {
  check_type(dtype == ScalarType::Float || dtype == ScalarType::Double ||
                 dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
             "expected float32, float64, bfloat16 or float16, got ", dtype);
}

// body(Stored<X>{}) for a dtype that was checked.
template <class Body>
auto with_storage(ScalarType dtype, const Body& body) {
  switch (dtype) {
    case ScalarType::Float:
      return body(Stored<float>{});
    case ScalarType::BFloat16:
      return body(Stored<cpu::BFloat16>{});
    case ScalarType::Half:
      return body(Stored<cpu::Half>{});
    default:
      return body(Stored<double>{});
  }
}

}  // namespace rnnfast::python
