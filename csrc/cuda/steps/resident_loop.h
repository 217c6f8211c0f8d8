// The host's side of a generated cell's pass in one launch: what Python calls.
#pragma once

#include <exception>
#include <string>

#include "cuda/device/stream.h"
#include "cuda/steps/resident_backward.h"
#include "cuda/steps/resident_forward.h"
#include "scan/steps.h"

namespace rnnfast::cuda::steps {

using rnnfast::steps::Arguments;

// Behind the weights that its text names stand the matrix, in the storage of the product, and where
// there is one, the scale (ResidentArgs).
template <class Own>
ResidentArgs<Own> resident_args(const Arguments& a) {
  ResidentArgs<Own> args{};
  args.T = a.T, args.B = a.B, args.H = a.H;
  args.lengths = a.lengths, args.resets = a.resets;
  args.reverse = a.reverse != 0, args.training = a.training != 0;
  const auto clip = TimeClip<float>::of(a.grad_clip_time);
  args.bound = clip.bound, args.limit = clip.limit;
  args.matrix = a.weights[Own::kWeights];
  args.scale = static_cast<const float*>(a.weights[Own::kWeights + 1]);
  for (int k = 0; k < Own::kBuffers; ++k) args.buffers[k] = a.buffers[k];
  for (int k = 0; k < Own::kWeights; ++k) args.weights[k] = static_cast<const float*>(a.weights[k]);
  for (int k = 0; k < Own::kConstants; ++k) args.constants[k] = float(a.constants[k]);
  return args;
}

// Zeros past the sequences' ends.
template <class Own>
void clear_padding(const Arguments& a, Stream stream) {
  EndArgs ends{{a.T, a.B, a.lengths, a.resets, a.reverse != 0}, false, 0, {}};
  static_assert(Own::kBuffers <= kMostEnds, "more buffers than one launch clears");
  for (int k = 0; k < Own::kBuffers; ++k) {
    if (a.buffers[k].clear && a.buffers[k].base != nullptr)
      ends.buffers[ends.count++] = a.buffers[k];
  }
  if (a.lengths == nullptr || ends.count == 0) return;
  launch(Launch{"own_clear", a.B, a.T < 64 ? a.T : 64, kEndThreads}, &own_clear, ends, stream);
}

// Dynamic shared memory of a block: two sets of operands, the parameters, and the slabs of the
// matrix that are not in registers.
template <class Mma>
constexpr int64_t resident_shared(int64_t H, int64_t columns, int params, int64_t tiles, int held) {
  using rnnfast::cuda::detail::ceil_div;
  const int64_t slabs = ceil_div(columns, slab_values(Mma::kMath));
  const int64_t spilled = slabs > held ? slabs - held : 0;
  return 2 * kColumns * (slabs * kSlabBytes + kRowPad) + params * ceil_div(H, 16) * 64 +
         spilled * tiles * kSlabShared;
}

// A pass by Own; kGroups: of a warp at most, kHeld: slabs of a tile in registers.
template <class Own, class Mma, int kGroups, int kHeld>
void run_resident(const Arguments& a, Stream stream) {
  using rnnfast::cuda::detail::ceil_div;
  constexpr bool kForward = !Own::kBackward;
  using Group = Grouped<Own::kPlanes>;
  const int64_t groups = ceil_div(a.H, kForward ? Group::kUnits : 16);
  if (groups > int64_t(kWarps) * kGroups || a.T > INT32_MAX - 2) {
    throw std::invalid_argument("a resident kernel of a cell of one's own is given H = " +
                                std::to_string(a.H) + ", T = " + std::to_string(a.T));
  }
  clear_padding<Own>(a, stream);
  Launch how;
  how.grid_x = ceil_div(a.B, kColumns);
  how.threads = kThreads;
  how.shared_bytes =
      int(resident_shared<Mma>(a.H, kForward ? a.H : a.H * Own::kPlanes, Own::kParams,
                               kForward ? groups * Group::kTiles : groups, kHeld));
  const auto args = resident_args<Own>(a);
  static_assert(sizeof(args) <= 4096, "a launch takes no more");
  if constexpr (kForward) {
    how.name = "resident_forward";
    launch(how, &resident_forward<Own, Mma, kGroups, kHeld>, args, stream);
  } else {
    how.name = "resident_backward";
    launch(how, &resident_backward<Own, Mma, kGroups, kHeld>, args, stream);
  }
}

}  // namespace rnnfast::cuda::steps

// At the end of a generated file: the function that Python calls, which returns why it could not be
// launched, or null.
#define RNNFAST_RESIDENT(name, ...)                                                                \
  extern "C" __attribute__((visibility("default"))) const char* rnnfast_##name(                    \
      const rnnfast::steps::Arguments* a, void* stream) {                                          \
    thread_local std::string message;                                                              \
    try {                                                                                          \
      rnnfast::cuda::steps::run_resident<__VA_ARGS__>(*a,                                          \
                                                      static_cast<rnnfast::cuda::Stream>(stream)); \
      return nullptr;                                                                              \
    } catch (const std::exception& error) {                                                        \
      message = error.what();                                                                      \
      return message.c_str();                                                                      \
    }                                                                                              \
  }                                                                                                \
  extern "C" __attribute__((visibility("default"))) int64_t rnnfast_##name##_bytes(                \
      const rnnfast::steps::Arguments*) {                                                          \
    return 0;                                                                                      \
  }
