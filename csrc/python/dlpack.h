// The part of DLPack's binary interface that is used here: how a tensor describes itself, and the
// table of functions that torch.Tensor.__dlpack_c_exchange_api__ holds. The layout is fixed for all
// versions 1.x
// (https://dmlc.github.io/dlpack/latest/c_api.html).
#pragma once

#include <cstdint>

namespace rnnfast::python::dlpack {

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1, kCuda = 2;  // devices

enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };

struct View {
  void* data;
  int32_t device, device_index;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // strides in elements
  uint64_t byte_offset;
};
static_assert(sizeof(View) == 48, "not as DLPack has it");

struct Managed;  // a tensor that is nobody's yet
using SetError = void (*)(void* context, const char* kind, const char* message);

struct Exchange {
  uint32_t major, minor;
  Exchange* older;
  // 0, or an error was told to `set_error`; of the prototype all but its data counts
  int (*allocate)(View* prototype, Managed** out, void* context, SetError set_error);
  void* managed_of;
  int (*to_python)(Managed* tensor, void** object);  // 0, or Python's error is set
  int (*view_of)(void* object, View* out);           // 0, or Python's error is set
  void* current_stream;
};

}  // namespace rnnfast::python::dlpack
