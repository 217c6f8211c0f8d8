// What the CUDA kernels are given. T steps, B batch, H hidden size, S slots (layout.h); tensors are
// dense, row-major, in the storage dtype unless said otherwise, their data 16-byte aligned.
#pragma once

#include <cstdint>

namespace rnnfast::cuda {

// States, or gradients of states, that one scan hands to another over the next part of the same
// steps: [B, H], not rounded to the storage dtype. Null: there are none.
template <class V>
struct Carried {
  V* h = nullptr;
  V* c = nullptr;
};

// One direction of a layer, forward.
struct ForwardDirection {
  const void* w_hh = nullptr;  // [G·H, H], torch's order of rows
  void* gates =
      nullptr;  // [T, B, H, S]: the input's part in; out, if training, what backward needs
  const void* h0 = nullptr;          // [B, H]
  const void* c0 = nullptr;          // [B, H], cells with a cell state
  void* y = nullptr;                 // [T, B, H], out; 0 past a sequence's end
  float* c = nullptr;                // [T, B, H] fp32, out, or null: not wanted; 0 past the end
  void* h_last = nullptr;            // [B, H], out
  void* c_last = nullptr;            // [B, H], out
  Carried<const float> before;       // in place of h0 and c0
  Carried<float> after;              // out: h_last and c_last
  const int64_t* lengths = nullptr;  // [B], or null: all T
  const bool* resets = nullptr;      // [T, B], or null
  bool reverse = false;
};

struct ForwardArgs {
  int64_t T = 0, B = 0, H = 0;
  bool training = false;
  bool relu = false;  // of the two cells that differ in this only
  int directions = 1;
  ForwardDirection direction[2];
};

// One direction, backward.
struct BackwardDirection {
  const void* w_hh = nullptr;     // [G·H, H]
  const void* saved = nullptr;    // [T, B, H, S], forward's gates; null where y is all
  const void* y = nullptr;        // [T, B, H]
  const float* c = nullptr;       // [T, B, H] fp32
  const void* h0 = nullptr;       // [B, H]
  const void* c0 = nullptr;       // [B, H]
  const void* dy = nullptr;       // [T, B, H], or null: 0
  const void* dc = nullptr;       // [T, B, H], gradient of every c; or null: 0
  const void* dh_last = nullptr;  // [B, H]
  const void* dc_last = nullptr;  // [B, H]
  void* dgates = nullptr;  // [T, B, H, S], out: D of layout.h times *scale; 0 past a sequence's end
  void* dh0 = nullptr;     // [B, H], out
  void* dc0 = nullptr;     // [B, H], out
  const float* c_before = nullptr;  // [B, H], in place of c0; h0 is y's row then
  Carried<const float> after;       // in place of dh_last and dc_last
  Carried<float> before;            // out: dh0 and dc0
  const int64_t* lengths = nullptr;
  const bool* resets = nullptr;
  bool reverse = false;
};

struct BackwardArgs {
  int64_t T = 0, B = 0, H = 0;
  bool relu = false;
  // One fp32 on the device, a power of two, or null: 1. The gradients of gates are multiplied by it
  // before they are rounded to the storage dtype: fp16 has no exponent for small ones.
  const float* scale = nullptr;
  // Above 0: after each step the gradients of h and c handed to the step before are clamped to
  // [-clip, clip]; below 0: those beyond [clip, -clip] become 0; 0: neither.
  float clip = 0;
  int directions = 1;
  BackwardDirection direction[2];
};

}  // namespace rnnfast::cuda
