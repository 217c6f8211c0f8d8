// One forward and backward of the resident kernels on the executor, between the C++ tests' double
// values.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu_scan.h"
#include "cuda/device/layout.h"
#include "cuda/solo/sequence.h"
#include "fenced.h"

namespace sequence_scan {

using namespace rnnfast;
using namespace rnnfast::cuda;
using cpu_scan::Expected;
using cpu_scan::Inputs;
using cpu_scan::Numbers;

template <class S>
double value_of(S stored) {
  if constexpr (std::is_same_v<S, float>) {
    return stored;
  } else {
    return to_float(stored);
  }
}

template <class S>
S stored_of(double value) {
  if constexpr (std::is_same_v<S, float>) {
    return float(value);
  } else {
    return from_float<S>(float(value));
  }
}

// n values that begin as NaN, 16-byte aligned; no thread may read past them.
template <class S>
struct Tensor {
  struct alignas(16) Chunk {
    S at[16 / sizeof(S)];
  };
  static constexpr int64_t kPerChunk = 16 / sizeof(S);
  int64_t size;
  std::vector<Chunk, simt::Fenced<Chunk>> chunks;

  explicit Tensor(int64_t n) : size(n), chunks((n + kPerChunk - 1) / kPerChunk) {
    for (int64_t k = 0; k < n; ++k) at(k) = stored_of<S>(cpu_scan::kNaN);
  }
  explicit Tensor(const Numbers& from) : Tensor(int64_t(from.size())) {
    for (int64_t k = 0; k < size; ++k) at(k) = stored_of<S>(from[k]);
  }

  S& at(int64_t k) { return chunks[k / kPerChunk].at[k % kPerChunk]; }
  S* data() { return size == 0 ? nullptr : &at(0); }
  double operator[](int64_t k) { return value_of(at(k)); }
  Numbers numbers() {
    Numbers out(size);
    for (int64_t k = 0; k < size; ++k) out[k] = (*this)[k];
    return out;
  }
};

// `in` with every value as the storage dtype has it, so that the reference computes from the same.
template <class S>
Inputs rounded(Inputs in) {
  for (Numbers* values :
       {&in.gx, &in.h0, &in.c0, &in.w_hh, &in.b_hh, &in.dy, &in.dc, &in.dh_last, &in.dc_last}) {
    for (double& x : *values) x = value_of(stored_of<S>(x));
  }
  return in;
}

// What launches a forward and a backward.
struct Launchers {
  std::function<void(const ForwardArgs&)> forward;
  std::function<void(const BackwardArgs&)> backward;  // empty: forward only
};

// The kernels of one block. backward_shape −1: forward only.
inline Launchers solo(CellId cell, Math math, int forward_shape, int backward_shape) {
  Launchers launchers;
  launchers.forward = [=](const ForwardArgs& args) {
    launch_sequence_forward(cell, {math, forward_shape}, args, nullptr);
  };
  if (backward_shape < 0) return launchers;
  launchers.backward = [=](const BackwardArgs& args) {
    launch_sequence_backward(cell, {math, backward_shape}, args, nullptr);
  };
  return launchers;
}

// Values before the weights of every run: where not 0 they are a view that is not aligned.
inline int64_t weights_offset = 0;

template <class S>
class Run {
 public:
  Tensor<S> gates, y, h_last, c_last, dgates, dh0, dc0;
  Tensor<float> c;

  Run(const Inputs& in, Math math, int forward_shape, int backward_shape, float clip = 0)
      : Run(in, solo(in.p.cell, math, forward_shape, backward_shape), clip) {}

  // clip: BackwardArgs'.
  Run(const Inputs& in, const Launchers& launchers, float clip = 0)
      : gates(slotted(in)),
        y(in.p.T * in.p.B * in.p.H),
        h_last(in.p.B * in.p.H),
        c_last(int64_t(in.c0.size())),
        dgates(gates.size),
        dh0(in.p.B * in.p.H),
        dc0(int64_t(in.c0.size())),
        c(in.p.has_cell_state() ? y.size : 0),
        in_(in),
        w_hh_(behind(weights_offset, in.w_hh)),
        h0_(in.h0),
        c0_(in.c0) {
    forward(launchers);
    if (launchers.backward) backward(launchers, clip);
  }

  // Gate g of the gradients, in torch's layout [T, B, G·H].
  Numbers dgx() {
    const Problem& p = in_.p;
    const int G = p.info().gates, S_ = slots_of(p.cell);
    Numbers out(p.T * p.B * G * p.H);
    for (int64_t row = 0; row < p.T * p.B; ++row) {
      for (int64_t j = 0; j < p.H; ++j) {
        for (int g = 0; g < G; ++g) {
          out[(row * G + g) * p.H + j] = dgates[(row * p.H + j) * S_ + g];
        }
      }
    }
    return out;
  }

  // The gradient of b_hh: sums of what D holds of the recurrent product.
  Numbers db_hh() {
    const Problem& p = in_.p;
    const int G = p.info().gates, S_ = slots_of(p.cell);
    Numbers out(G * p.H);
    for (int64_t row = 0; row < p.T * p.B; ++row) {
      for (int64_t j = 0; j < p.H; ++j) {
        for (int g = 0; g < G; ++g) {
          const int slot = g == p.info().own_gate ? G : g;
          out[g * p.H + j] += dgates[(row * p.H + j) * S_ + slot];
        }
      }
    }
    return out;
  }

 private:
  // gx with the biases of the recurrent product, unit-major (layout.h).
  static Numbers slotted(const Inputs& in) {
    const Problem& p = in.p;
    const int G = p.info().gates, S_ = slots_of(p.cell);
    Numbers out(p.T * p.B * p.H * S_, cpu_scan::kNaN);
    for (int64_t row = 0; row < p.T * p.B; ++row) {
      for (int64_t j = 0; j < p.H; ++j) {
        for (int g = 0; g < G; ++g) {
          const double b = in.option.bias ? in.b_hh[g * p.H + j] : 0;
          const bool apart = g == p.info().own_gate;
          double* slots = &out[(row * p.H + j) * S_];
          slots[g] = in.gx[(row * G + g) * p.H + j] + (apart ? 0 : b);
          if (apart) slots[G] = b;
        }
      }
    }
    return out;
  }

  static Numbers behind(int64_t count, const Numbers& values) {
    Numbers all(count, cpu_scan::kNaN);
    all.insert(all.end(), values.begin(), values.end());
    return all;
  }

  template <class Direction>
  void common(Direction& d) {
    d.w_hh = w_hh_.data() + weights_offset, d.h0 = h0_.data(), d.c0 = c0_.data();
    if (const int64_t* lengths = in_.masks().lengths) {
      lengths_.assign(lengths, lengths + in_.p.B);
      d.lengths = lengths_.data();
    }
    d.resets = in_.masks().resets;
    d.reverse = in_.p.reverse;
  }

  void forward(const Launchers& launchers) {
    ForwardArgs args;
    args.T = in_.p.T, args.B = in_.p.B, args.H = in_.p.H, args.training = true;
    ForwardDirection& d = args.direction[0];
    common(d);
    d.gates = gates.data(), d.y = y.data(), d.c = c.data();
    d.h_last = h_last.data(), d.c_last = c_last.data();
    launchers.forward(args);
  }

  void backward(const Launchers& launchers, float clip) {
    Tensor<S> dy(in_.dy), dc(in_.dc), dh_last(in_.dh_last), dc_last(in_.dc_last);
    BackwardArgs args;
    args.T = in_.p.T, args.B = in_.p.B, args.H = in_.p.H, args.clip = clip;
    BackwardDirection& d = args.direction[0];
    common(d);
    d.saved = gates.data(), d.y = y.data(), d.c = c.data();
    d.dy = in_.option.dy ? dy.data() : nullptr, d.dc = in_.option.dc ? dc.data() : nullptr;
    d.dh_last = dh_last.data(), d.dc_last = dc_last.data();
    d.dgates = dgates.data(), d.dh0 = dh0.data(), d.dc0 = dc0.data();
    launchers.backward(args);
  }

  const Inputs& in_;
  Tensor<S> w_hh_, h0_, c0_;
  std::vector<int64_t, simt::Fenced<int64_t>> lengths_;
};

}  // namespace sequence_scan
