// What the host kernels are given and which there are. Plain pointers, no torch; the same kernels
// are compiled once for each instruction set (kernels_<isa>.cpp) and chosen at run time.
#pragma once

#include <cstdint>
#include <string>

#include "cells/list.h"
#include "cpu/gemm_problem.h"
#include "cpu/sums_problem.h"
#include "scan/time_clip.h"

namespace rnnfast::cpu {

// How threads share a scan: rows × units of them. Threads of one row part own the same sequences
// and wait for one another at each step; row parts never meet.
struct Split {
  int rows = 1, units = 1;
};

// Shapes as in tests/cpp/reference.h; all row-major and contiguous. S is float or double.
template <class S>
struct Scan {
  int64_t T = 0, B = 0, H = 0, P = 0;
  bool reverse = false, training = false;
  Split split;
  const S* w_hh = nullptr;           // [G·H, P]
  const S* b_hh = nullptr;           // [G·H] or null
  const S* w_hr = nullptr;           // [P, H], projected cells only
  const int64_t* lengths = nullptr;  // [B] or null
  const bool* resets = nullptr;      // [T, B] or null
  const S* h0 = nullptr;             // [B, P]
  const S* c0 = nullptr;             // [B, H], cells with c only, like every c below
};

template <class S>
struct Forward : Scan<S> {
  S* gates = nullptr;  // [T, B, G·H], in: x·W_ihᵀ + b_ih, overwritten; out if training: saved[0..G)
  // Where x is not null the scan makes gates' input itself; split.units is 1 then. gates is null
  // where nobody wants to have saved[0..G) in it.
  const S *x = nullptr, *w_ih = nullptr, *b_ih = nullptr;  // [T, B, I], [G·H, I], [G·H] or null
  int64_t I = 0, x_step = 0, x_row = 0;  // from one t, and one b, of x to the next
  // One step of few sequences: weights are read where they lie. split.rows is 1 then, units any.
  bool in_place = false;
  int16_t* fixed = nullptr;  // [T, B, G·H], out if training: saved[0..G) goes here in fixed point
  // (Vec::store_fixed) instead; or null. float and bounded gates only
  S* extra = nullptr;   // saved[G], cells that have it: [T, B, H] if training, else scratch [B, H]
  S* y = nullptr;       // [T, B, P]
  S* c = nullptr;       // [T, B, H] every cell state, or null: only the last is kept
  S* h_last = nullptr;  // [B, P]
  S* c_last = nullptr;  // [B, H]
  void* workspace = nullptr;  // Kernels::workspace() bytes, 64-byte aligned
};

template <class S>
struct Backward : Scan<S> {
  const S* gates = nullptr;        // as forward left them, like extra, y and c
  const int16_t* fixed = nullptr;  // read instead of gates, if not null
  const S* extra = nullptr;
  const S* y = nullptr;
  const S* c = nullptr;
  const S* dy = nullptr;      // [T, B, P] or null: 0
  const S* dc = nullptr;      // [T, B, H], gradient of every c, or null: 0
  S* dgx = nullptr;           // [T, B, G·H], out
  S* dgh_own = nullptr;       // [T, B, H], out: dgh of the gate kOwnGate, of cells that have one
  S* dh_total = nullptr;      // [T, B, P], out: projected cells, the gradient of each h'
  TimeClip<S> clip;           // of dh and dc, after each step
  S* dh0 = nullptr;           // [B, P], in: gradient of the last h; out: of h0
  S* dc0 = nullptr;           // [B, H], the same for c
  void* workspace = nullptr;  // Kernels::workspace() bytes, 64-byte aligned
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
  // Bytes that a scan of these sizes needs, forward or backward.
  int64_t (*workspace)(CellId, int64_t B, int64_t H, int64_t P, int scalar_bytes, Split);
  // And how many more, if it makes the input's part of the gates itself.
  int64_t (*input_room)(CellId, int64_t B, int64_t I, int64_t H, int scalar_bytes, Split);
  int64_t in_place_rows;  // sequences of a step whose weights may be read where they lie, at most
  GemmTimes (*gemm_f32)(const Gemm<float>&);
  GemmTimes (*gemm_f64)(const Gemm<double>&);
  // What parts of C are multiples of, and the bytes of workspace of each thread.
  GemmGrain (*gemm_grain)(int scalar_bytes);
  int64_t (*gemm_room)(int scalar_bytes);
  double (*multiply_adds)(int64_t rounds);
  GemmTimes (*sums_f32)(const Sums<float>&);
  GemmTimes (*sums_f64)(const Sums<double>&);
  // Bytes that such sums need; where they go does not matter, but for whether it is null.
  int64_t (*sums_room_f32)(const Sums<float>&);
  int64_t (*sums_room_f64)(const Sums<double>&);
};

extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;

// The best set that this processor has and RNNFAST_CPU_CAPABILITY (avx512, avx2, baseline) allows.
// Throws std::runtime_error if the variable asks for what the processor lacks, or is no name.
const Kernels& kernels();

}  // namespace rnnfast::cpu
