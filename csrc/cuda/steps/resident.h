// What the two kernels share that run all steps of a generated cell in one launch: a block has
// all hidden units of 8 sequences, and the matrix of the cell's one product in registers and shared
// memory, as the kernels of solo/ have it. Those know two states and what is saved beside the
// gates; here a generated class says what a unit reads and writes (rnnfast/steps/resident_text.py).
//
// What such a class, Own, offers, of a hidden unit; lists are functions of a number below kX:
//
//   kBuffers, kWeights, kConstants  how many its text names
//   kPlanes, gate(p)                sums of the product, or gradients that backward multiplies; of
//                                   each, which H rows of the matrix it is of
//   kParams, param(n)               elements of weights
//   kStates, state(k)               the buffer of a state, backward of its gradient
//   kReads, read(n)                 what it reads at a step
//   kWrites, write(n)               and what it writes there
//   forward:   operand(g, s), step(g, in, s, x, news, out)
//   backward:  kKept, kAdded, added(n)  what is kept across the product; sums over all steps
//              output(k)                the buffer of the gradient of a state as an output
//              before(g, in, d, q, kept, out, ds, add), after(g, x, kept, ds, add)
//
// g: Given. in, out: of memory. s, news: states. x: the sums. d: the gradients of new states, ds: of
// the states before. q: what the product multiplies. Arrays have one element more than is used where
// they would be empty.
#pragma once

#include <utility>

#include "cuda/device/mma.h"
#include "cuda/device/real.h"
#include "cuda/device/sequences.h"
#include "cuda/solo/weights.h"
#include "cuda/steps/ends.h"
#include "cuda/steps/math.h"
#include "scan/time_clip.h"

namespace rnnfast::cuda::steps {

// A unit's value of a row of memory, which is `width` times H long: `offset` times H behind its
// begin. old: it is of the state before the step.
struct Element {
  int buffer, offset, width;
  bool old;
};

// A unit's element of a weight, `offset` times H behind its begin.
struct Param {
  int weight, offset;
};

RNNFAST_HD constexpr int some(int n) { return n > 0 ? n : 1; }

template <class Own>
struct ResidentArgs {
  int64_t T, B, H;
  const int64_t* lengths;
  const bool* resets;
  bool reverse, training;
  float bound, limit;  // TimeClip
  const float*
      scale;  // what backward's product is multiplied by on its way, a power of two, or null
  const void* matrix;  // row-major, rows of H, in the storage of the product
  Buffer buffers[Own::kBuffers];
  const float* weights[some(Own::kWeights)];
  float constants[some(Own::kConstants)];
};

// f(integral_constant) for 0 … n - 1.
template <class F, int... k>
RNNFAST_DEVICE void for_each(const F& f, std::integer_sequence<int, k...>) {
  (f(std::integral_constant<int, k>{}), ...);
}
template <int n, class F>
RNNFAST_DEVICE void for_each(const F& f) {
  for_each(f, std::make_integer_sequence<int, n>());
}

RNNFAST_DEVICE V fast_sigmoid(V x) { return sigmoid(Real(x)).value; }
RNNFAST_DEVICE V fast_tanh(V x) { return tanh(Real(x)).value; }

// The base of the generated classes: those by the hardware's exponential and reciprocal.
struct ResidentMath {
  RNNFAST_DEVICE static V sigmoid(V x) { return fast_sigmoid(x); }
  RNNFAST_DEVICE static V tanh(V x) { return fast_tanh(x); }
};

// What a unit is given that no step changes.
template <class Own>
struct Given {
  const ResidentArgs<Own>& args;
  const float* own;  // its parameters, in shared memory
  int stride;

  RNNFAST_DEVICE V param(int n) const { return own[n * stride]; }
  RNNFAST_DEVICE V constant(int k) const { return args.constants[k]; }
};

// A warp's groups of kGroupUnits units, kGroupTiles tiles of the matrix each, kGroups at most.
template <class Own, class Mma, int kGroups, int kGroupTiles, int kGroupUnits, int kHeld>
struct Resident {
  using Args = ResidentArgs<Own>;
  using Storage = typename Mma::Storage;
  using Operand = typename Mma::Operand;
  static constexpr int kOctets = kGroupUnits / 8;
  static constexpr int kValues = kSlabBytes / int(sizeof(Operand));

  const Args& args;
  Sequences sequences;
  Weights<Mma, kGroups * kGroupTiles, kGroupTiles, kHeld> w;
  unsigned char* rows;  // two sets of kColumns rows of operands
  float* params;        // [kParams][param_stride()]
  int stride, set;      // bytes from a row to the next, and to the set that is read
  int reset[2] = {0, 0};

  RNNFAST_DEVICE Resident(const Args& a, unsigned char* shared, int columns)
      : args(a), sequences(a.T, a.B, a.H, block_x(), a), rows(shared), set(0) {
    stride = slab_count(columns) * kSlabBytes + kRowPad;
    params = reinterpret_cast<float*>(shared + 2 * kColumns * stride);
    for (int i = thread_index() * 4; i < 2 * kColumns * stride; i += kThreads * 4) {
      *reinterpret_cast<uint32_t*>(rows + i) = 0;
    }
    for_each<Own::kParams>([&](auto n) {
      constexpr Param from = Own::param(decltype(n)::value);
      const float* weight = args.weights[from.weight] + from.offset * args.H;
      for (int u = thread_index(); u < param_stride(); u += kThreads) {
        params[decltype(n)::value * param_stride() + u] = u < args.H ? load_once(weight + u) : 0.0f;
      }
    });
  }

  // where(tile of the warp, row, column) -> const Storage*, null outside the matrix.
  template <Along kAlong, class Where>
  RNNFAST_DEVICE void load_weights(int columns, const Where& where) {
    auto* spilled = reinterpret_cast<unsigned char*>(params + Own::kParams * param_stride());
    const auto* matrix = static_cast<const Storage*>(args.matrix);
    const bool chunks = rnnfast::cuda::detail::may_load_chunks(matrix, args.H);
    const int groups = int((args.H + kGroupUnits - 1) / kGroupUnits);
    w.template load_all<kAlong>(spilled, slab_count(columns), groups, matrix, chunks, where);
  }

  RNNFAST_DEVICE static int slab_count(int columns) { return (columns + kValues - 1) / kValues; }
  RNNFAST_DEVICE int param_stride() const { return (int(args.H) + 15) / 16 * 16; }
  RNNFAST_DEVICE int unit(int i, int octet) const {
    return w.group(i) * kGroupUnits + octet * 8 + lane() / 4;
  }
  RNNFAST_DEVICE bool is_unit(int i, int octet) const { return unit(i, octet) < int(args.H); }
  RNNFAST_DEVICE bool owns(int i, int octet, int j) const {
    return is_unit(i, octet) && sequences.exists(j);
  }
  RNNFAST_DEVICE Given<Own> given(int i, int octet) const {
    return {args, params + unit(i, octet), param_stride()};
  }
  RNNFAST_DEVICE void turn_over() { set = kColumns * stride - set; }

  // f(group, octet, sequence) for all units and sequences that the thread has and that exist.
  template <class F>
  RNNFAST_DEVICE void each(const F& f) {
    RNNFAST_UNROLL
    for (int i = 0; i < kGroups; ++i) {
      RNNFAST_UNROLL
      for (int octet = 0; octet < kOctets; ++octet) {
        if (!is_unit(i, octet)) continue;
        RNNFAST_UNROLL
        for (int j = 0; j < 2; ++j) f(i, octet, j);
      }
    }
  }

  // A unit's element of the row of a step that begins, in a tensor [T, B, H], at `row`.
  RNNFAST_DEVICE float* at(Element e, int64_t row, int i, int octet) const {
    auto* base = static_cast<float*>(args.buffers[e.buffer].base);
    return base + row * e.width + e.offset * args.H + unit(i, octet);
  }
  // Of a tensor [B, H].
  RNNFAST_DEVICE float load_state(const void* from, int i, int octet, int j) const {
    return load(static_cast<const float*>(from) + sequences.first(j) + unit(i, octet));
  }
  RNNFAST_DEVICE void store_state(void* to, int i, int octet, int j, float value) const {
    store(static_cast<float*>(to) + sequences.first(j) + unit(i, octet), value);
  }

  // Whether step s begins with a state of 0.
  RNNFAST_DEVICE int is_reset(int j, int s) const {
    if (args.resets == nullptr || !sequences.alive(j, s)) return 0;
    return load_once(reinterpret_cast<const uint8_t*>(args.resets) + sequences.reset_place(j, s));
  }

  // What a unit writes at a step, for sequences that take it: what is saved, or gradients.
  template <int n>
  RNNFAST_DEVICE void write(const float (&out)[n], int64_t row, int i, int octet) const {
    if (!Own::kBackward && !args.training) return;
    for_each<Own::kWrites>([&](auto k) {
      constexpr Element to = Own::write(decltype(k)::value);
      store(at(to, row, i, octet), out[decltype(k)::value]);
    });
  }
};

}  // namespace rnnfast::cuda::steps
