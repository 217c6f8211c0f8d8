// Layers whose packed weights and states are held from call to call: what the host kernels are
// given of them (docs/streaming.md). Plain pointers, no torch; compiled once for each instruction
// set (<isa>.cpp) and chosen as the other kernels are.
#pragma once

#include <cstdint>

#include "cells/list.h"
#include "scan/steps.h"

namespace rnnfast::cpu::stream {

// How packed weights are stored. kInt8 has a scale for each row of a matrix. Sums are float's, of
// kFloat64 double's.
enum class Storage : int { kFloat32, kFloat64, kBFloat16, kInt8 };

// One layer. G gates as its cell has them. own_gates > 0: of a cell that is compiled at run time, of
// which only W_ih is packed, so many rows of it.
struct Shape {
  CellId cell = CellId::kRnnTanh;
  int64_t I = 0, H = 0, P = 0;
  int64_t own_gates = 0;
};

// What is packed. All contiguous; the biases or null.
template <class S>
struct Weights {
  const S* w_ih = nullptr;  // [G·H, I]
  const S* w_hh = nullptr;  // [G·H, P]
  const S* b_ih = nullptr;  // [G·H]
  const S* b_hh = nullptr;
  const S* w_hr = nullptr;  // [P, H], projected cells only
};

// The loop of a cell that is compiled at run time: it reads gx [T, B, width], writes y [T, B, H] and
// holds its states.
template <class S>
struct Own {
  rnnfast::steps::HostPass forward = nullptr;
  rnnfast::steps::Arguments* arguments = nullptr;
  S* gx = nullptr;
  int64_t width = 0;  // of a row of gx, of which the gates are the first
  const S* y = nullptr;
};

template <class S>
struct Layer {
  Shape shape;
  const void* packed = nullptr;  // as Kernels::pack left it
  S* h[2] = {nullptr, nullptr};  // [B, P]: before and after a step, in turn
  S* c = nullptr;                // [B, H], cells with c only
  const Own<S>* own = nullptr;   // where shape.own_gates > 0; it holds the states
};

// T steps of all layers. Element (t, b) of x and y is a row, rows contiguous.
template <class S>
struct Run {
  const Layer<S>* layers = nullptr;
  int64_t count = 0;
  int64_t T = 0, B = 0;
  Storage storage = Storage::kFloat32;
  int64_t chunk = 1;  // steps of a layer before the next one's: what Kernels::scratch was asked for
  int slot = 0;       // which of h is the one before; after T steps it is that of slot + T
  int threads = 1;
  const S* x = nullptr;             // [T, B, I] of the first layer,
  const int64_t* tokens = nullptr;  // or [T, B], which must be in [0, I)
  int64_t x_step = 0, x_row = 0;
  S* y = nullptr;  // [T, B, P] of the last one
  int64_t y_step = 0, y_row = 0;
  void (*round)(S*, int64_t) = nullptr;  // outputs to 16-bit storage, in place; or null
  void* scratch = nullptr;               // 64-byte aligned, as `packed` is
};

// The kernels of one instruction set. Sizes in bytes.
struct Kernels {
  int64_t (*packed)(const Shape&, Storage);
  int64_t (*scratch)(const Shape*, int64_t count, Storage, int64_t B, int64_t chunk);
  void (*pack_f32)(const Shape&, Storage, const Weights<float>&, void*);
  void (*pack_f64)(const Shape&, Storage, const Weights<double>&, void*);
  void (*run_f32)(const Run<float>&);
  void (*run_f64)(const Run<double>&);
};

extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;

// Those of the instruction set that cpu::kernels() has chosen.
const Kernels& kernels();

}  // namespace rnnfast::cpu::stream
