// What the host kernels are given and which there are. Plain pointers, no torch; the same kernels
// are compiled once for each instruction set (kernels_<isa>.cpp) and chosen at run time.
#pragma once

#include <cstdint>
#include <string>

#include "cells/list.h"
#include "cpu/gemm_problem.h"
#include "cpu/storage.h"
#include "cpu/sums_problem.h"
#include "scan/steps.h"
#include "scan/time_clip.h"

namespace rnnfast::cpu {

// How threads share a scan: rows × units of them. Threads of one row part own the same sequences
// and wait for one another at each step; row parts never meet.
struct Split {
  int rows = 1, units = 1;
};

// Shapes as in tests/cpp/reference.h; all row-major and contiguous. X, which tensors are stored as,
// is float, double, BFloat16 or Half, and S what their numbers are computed in.
template <class X>
struct Scan {
  int64_t T = 0, B = 0, H = 0, P = 0;
  bool reverse = false, training = false;
  Split split;
  const X* w_hh = nullptr;           // [G·H, P]
  const X* b_hh = nullptr;           // [G·H] or null
  const X* w_hr = nullptr;           // [P, H], projected cells only
  const int64_t* lengths = nullptr;  // [B] or null
  const bool* resets = nullptr;      // [T, B] or null
  const X* h0 = nullptr;             // [B, P]
  const X* c0 = nullptr;             // [B, H], cells with c only, like every c below
};

template <class X>
struct Forward : Scan<X> {
  using S = Wide<X>;
  S* gates = nullptr;  // [T, B, G·H], in: x·W_ihᵀ + b_ih, overwritten; out if training: saved[0..G)
  // Where x is not null the scan makes gates' input itself; split.units is 1 then. gates is null
  // where nobody wants to have saved[0..G) in it.
  const X *x = nullptr, *w_ih = nullptr, *b_ih = nullptr;  // [T, B, I], [G·H, I], [G·H] or null
  int64_t I = 0, x_step = 0, x_row = 0;  // from one t, and one b, of x to the next
  // One step of few sequences: weights are read where they lie. split.rows is 1 then, units any.
  bool in_place = false;
  int16_t* fixed = nullptr;  // [T, B, G·H], out if training: saved[0..G) goes here in fixed point
  // (Vec::store_fixed) instead; or null. Computed as float, bounded gates only
  X* extra = nullptr;   // saved[G], cells that have it: [T, B, H] if training, else scratch [B, H]
  X* y = nullptr;       // [T, B, P]
  X* c = nullptr;       // [T, B, H] every cell state, or null: only the last is kept
  X* h_last = nullptr;  // [B, P]
  X* c_last = nullptr;  // [B, H]
  void* workspace = nullptr;  // Kernels::workspace() bytes, 64-byte aligned
};

// D, what gradients of gates are stored as, is S; or X, where products multiply that in pairs.
template <class X, class D = Wide<X>>
struct Backward : Scan<X> {
  using S = Wide<X>;
  const S* gates = nullptr;        // as forward left them, like extra, y and c
  const int16_t* fixed = nullptr;  // read instead of gates, if not null
  const X* extra = nullptr;
  const X* y = nullptr;
  const X* c = nullptr;
  const X* dy = nullptr;       // [T, B, P] or null: 0
  const X* dc = nullptr;       // [T, B, H], gradient of every c, or null: 0
  const X* dh_last = nullptr;  // [B, P], gradient of the last h; null: dh0 holds it already
  const X* dc_last = nullptr;  // [B, H], the same for c
  D* dgx = nullptr;            // [T, B, G·H], out
  D* dgh_own = nullptr;        // [T, B, H], out: dgh of the gate kOwnGate, of cells that have one
  D* dh_total = nullptr;       // [T, B, P], out: projected cells, the gradient of each h'
  TimeClip<S> clip;            // of dh and dc, after each step
  S* dh0 = nullptr;            // [B, P], out: gradient of h0
  S* dc0 = nullptr;            // [B, H], the same for c
  bool of_states = true;       // else nobody reads dh0 and dc0, and the product for dh0 is left out
  // Where dx is not null the scan makes it too, of W_ih; split.units is 1 then.
  S* dx = nullptr;          // [T, B, I], out
  const X* w_ih = nullptr;  // [G·H, I]
  int64_t I = 0;
  void* workspace = nullptr;  // Kernels::workspace() bytes, 64-byte aligned
};

// Of tensors that are stored as X, in 16 bits; gradients of gates as D.
template <class X, class D>
struct NarrowKernels {
  bool (*forward)(CellId, const Forward<X>&);
  bool (*backward)(CellId, const Backward<X, D>&);
  void (*gemm)(const Gemm<X>&);          // of the input and its weights,
  void (*gemm_back)(const Gemm<D, X>&);  // of gradients and weights
  void (*sums)(const Sums<D, X>&);
  int64_t (*sums_room)(const Sums<D, X>&);
  void (*round)(X* to, const float* from, int64_t n);
};

// The kernels of one instruction set.
struct Kernels {
  const char* isa;
  int vector_bytes;
  // Each returns whether threads had to leave, since they waited for most of the time.
  bool (*forward_f32)(CellId, const Forward<float>&);
  bool (*forward_f64)(CellId, const Forward<double>&);
  bool (*backward_f32)(CellId, const Backward<float>&);
  bool (*backward_f64)(CellId, const Backward<double>&);
  // Bytes that a scan of these sizes needs, forward or backward. storage_bytes: of a number.
  int64_t (*workspace)(CellId, int64_t B, int64_t H, int64_t P, int storage_bytes, Split);
  // And how many more, if it makes the input's part of the gates itself, of so many columns.
  int64_t (*input_room)(int64_t columns, int64_t B, int64_t I, int storage_bytes, Split);
  // The same of its gradient.
  int64_t (*input_gradient_room)(int64_t columns, int64_t I, int storage_bytes);
  // The same of a loop that is compiled at run time: of f, which it keeps, what concerns the input is
  // set. The workspace is of input_room() bytes.
  steps::Input (*loop_input_f32)(const Forward<float>& f, int64_t columns);
  steps::Input (*loop_input_f64)(const Forward<double>& f, int64_t columns);
  // Of g what concerns the input, dgx, the sizes and `reverse` are set.
  steps::Input (*loop_input_gradient_f32)(const Backward<float>& g, int64_t columns);
  steps::Input (*loop_input_gradient_f64)(const Backward<double>& g, int64_t columns);
  int64_t in_place_rows;  // sequences of a step whose weights may be read where they lie, at most
  void (*gemm_f32)(const Gemm<float>&);
  void (*gemm_f64)(const Gemm<double>&);
  // What parts of C are multiples of, and the bytes of workspace of each thread.
  GemmGrain (*gemm_grain)(int scalar_bytes);
  int64_t (*gemm_room)(int scalar_bytes);
  double (*multiply_adds)(int64_t rounds);
  void (*sums_f32)(const Sums<float>&);
  void (*sums_f64)(const Sums<double>&);
  // Bytes that such sums need; where they go does not matter, but for whether it is null.
  int64_t (*sums_room_f32)(const Sums<float>&);
  int64_t (*sums_room_f64)(const Sums<double>&);
  NarrowKernels<BFloat16, float> bf16;
  NarrowKernels<Half, float> f16;
  // Of processors that multiply bfloat16 in pairs, taken instead of bf16; else null.
  const NarrowKernels<BFloat16, BFloat16>* dots;
  // Whether dots multiplies many rows by tiles of AMX; and why not, though the processor has them and
  // nobody asked for another set, or null.
  bool tiles;
  const char* why_no_tiles;
};

extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;
extern const NarrowKernels<BFloat16, BFloat16> dots_avx512;
// With tiles of AMX for many rows. All null where the compiler did not know them.
extern const NarrowKernels<BFloat16, BFloat16> tiles_amx;
// Whether a small product by this processor's tiles has the numbers of their emulation.
bool tiles_agree();

// The best set that this processor has and RNNFAST_CPU_CAPABILITY (amx, avx512_bf16, avx512, avx2,
// baseline) allows; the first two are avx512 with other products of bfloat16.
// Throws std::runtime_error if the variable asks for what the processor lacks, or is no name.
const Kernels& kernels();

}  // namespace rnnfast::cpu
