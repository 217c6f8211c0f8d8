// What the tests of 16-bit storage run: numbers in either format, and one run of a set of kernels on
// tensors that hold them.
#pragma once

#include "cpu/storage.h"
#include "cpu_scan.h"

namespace narrow_scan {

using namespace cpu_scan;
using cpu::BFloat16, cpu::Half;

template <class X>
constexpr int kDigits = std::is_same_v<X, BFloat16> ? 8 : 11;  // of a number, in binary
template <class X>
constexpr int kLeastExponent = std::is_same_v<X, BFloat16> ? -126 : -14;
template <class X>
constexpr int kBias = std::is_same_v<X, BFloat16> ? 127 : 15;

inline double wide(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline double wide(Half x) {
  const int exponent = x.bits >> 10 & 31, digits = x.bits & 1023;
  const double sign = x.bits >> 15 ? -1 : 1;
  if (exponent == 31) return digits ? kNaN : sign * std::numeric_limits<double>::infinity();
  return sign *
         (exponent == 0 ? std::ldexp(digits, -24) : std::ldexp(1024 + digits, exponent - 25));
}

// To the nearest, of two to the even one.
template <class X>
X narrow(double value) {
  constexpr int kFraction = kDigits<X> - 1;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const uint16_t special = std::is_same_v<X, BFloat16> ? 0x7f80 : 0x7c00;
  const double size = std::fabs(value);
  if (std::isnan(value)) return {uint16_t(special | 1 << (kFraction - 1))};
  if (std::isinf(value)) return {uint16_t(sign | special)};
  int exponent = size == 0 ? kLeastExponent<X> : std::ilogb(size);
  if (exponent < kLeastExponent<X>) exponent = kLeastExponent<X>;
  const double units = std::nearbyint(std::ldexp(size, kFraction - exponent));
  const int number = int(units) + ((exponent + kBias<X> - 1) << kFraction);  // carries by itself
  return {uint16_t(sign | std::min<int>(number, special))};
}

// n elements, NaN until written, and a guard behind them that must stay as it is.
template <class X>
class Tensor {
 public:
  explicit Tensor(int64_t n = 0) : n_(n), values_(n + kGuard, narrow<X>(kNaN)) {
    std::fill(values_.begin() + n, values_.end(), X{kMark});
  }
  explicit Tensor(const Numbers& from) : Tensor(static_cast<int64_t>(from.size())) {
    std::transform(from.begin(), from.end(), values_.begin(), narrow<X>);
  }
  X* data() { return n_ == 0 ? nullptr : values_.data(); }
  Numbers numbers() const {
    Numbers found(n_);
    for (int64_t k = 0; k < n_; ++k) found[k] = wide(values_[k]);
    return found;
  }
  bool intact() const {
    return std::all_of(values_.begin() + n_, values_.end(), [](X x) { return x.bits == kMark; });
  }

 private:
  static constexpr uint16_t kMark = 0xc2a5;
  int64_t n_;
  std::vector<X> values_;
};

template <class S>
Numbers numbers_of(const Buffer<S>& buffer) {
  Numbers found(buffer.size());
  for (int64_t k = 0; k < buffer.size(); ++k) found[k] = buffer[k];
  return found;
}
template <class X>
Numbers numbers_of(const Tensor<X>& tensor) {
  return tensor.numbers();
}

// dgx [rows, columns] times w_ih [columns, I]: the gradient of the input.
template <class D, class X, class Function>
Numbers large_product(const cpu::Kernels& base, Function function, D* dgx, X* w_ih, int64_t rows,
                      int64_t columns, int64_t I) {
  Buffer<cpu::Wide<X>> dx(rows * I);
  cpu::Gemm<D, X> g;
  g.M = rows, g.N = I, g.K = columns;
  g.a = dgx, g.a_row = columns, g.a_column = 1;
  g.b = w_ih, g.b_row = I, g.b_column = 1;
  g.c = dx.data(), g.c_row = I;
  Workspace room(base.gemm_room(sizeof(cpu::Wide<X>)));
  g.workspace = room.data();
  function(g);
  return narrow_scan::numbers_of(dx);
}

// Inputs whose every value is one of X.
template <class X>
Inputs inputs(CellId cell, int64_t T, int64_t B, int64_t H, const Option& option) {
  Inputs in(cell, T, B, H, option);
  for (Numbers* values :
       {&in.h0, &in.c0, &in.w_hh, &in.b_hh, &in.w_hr, &in.dy, &in.dc, &in.dh_last, &in.dc_last}) {
    for (double& x : *values) x = wide(narrow<X>(x));
  }
  return in;
}

// Gradients of gates: D is float, or X where they are multiplied in pairs.
template <class X, class D>
using Gradients = std::conditional_t<std::is_same_v<X, D>, Tensor<X>, Buffer<float>>;

// x [T, B, I], and what it is multiplied with, of a scan that makes the input's part of the gates.
template <class X>
struct GivenInput {
  Tensor<X> x, w_ih, b_ih;
  int64_t I;
};

// One forward of `kernels` and, if training, the backward. `base` has their workspace.
template <class X, class D>
class NarrowRun {
 public:
  Tensor<X> y, c, extra, h_last, c_last;
  Gradients<X, D> dgx, dgh_own, dh_total;
  Buffer<float> dh0, dc0, dx;
  std::vector<int16_t> fixed;

  NarrowRun(const cpu::NarrowKernels<X, D>& kernels, const cpu::Kernels& base, const Inputs& in,
            cpu::Split split, bool training, GivenInput<X>* input = nullptr)
      : kernels_(kernels), base_(base), in_(in), split_(split), input_(input) {
    forward(training);
    if (training) backward();
    for (const auto* made : {&y, &c, &extra, &h_last, &c_last})
      CHECK_IN(made->intact(), in.label());
    for (const auto* made : {&dgx, &dgh_own, &dh_total}) CHECK_IN(made->intact(), in.label());
    for (const auto* made : {&dh0, &dc0, &dx}) CHECK_IN(made->intact(), in.label());
  }

  // All that was written, to be compared.
  std::vector<Numbers> all() const {
    return {y.numbers(),         c.numbers(),          extra.numbers(),
            h_last.numbers(),    c_last.numbers(),     numbers_of(dgx),
            numbers_of(dgh_own), numbers_of(dh_total), numbers_of(dh0),
            numbers_of(dc0),     numbers_of(dx),       Numbers(fixed.begin(), fixed.end())};
  }

 private:
  void forward(bool training) {
    const Problem& p = in_.p;
    const CellInfo& cell = p.info();
    y = Tensor<X>(p.T * p.B * p.P), h_last = Tensor<X>(p.B * p.P);
    if (p.has_cell_state()) c = Tensor<X>(p.T * p.B * p.H), c_last = Tensor<X>(p.B * p.H);
    if (cell.saved > cell.gates) extra = Tensor<X>((training ? p.T : 1) * p.B * p.H);
    if (training && cell.bounded_gates) fixed.resize(p.gate_elements());
    Buffer<float> gates(in_.gx);
    cpu::Forward<X> f;
    f.training = training;
    f.gates = gates.data(), f.fixed = fixed.empty() ? nullptr : fixed.data();
    f.y = y.data(), f.c = c.data(), f.extra = extra.data();
    f.h_last = h_last.data(), f.c_last = c_last.data();
    if (input_) {
      f.gates = nullptr;
      f.x = input_->x.data(), f.w_ih = input_->w_ih.data(), f.b_ih = input_->b_ih.data();
      f.I = input_->I, f.x_row = f.I, f.x_step = p.B * f.I;
    }
    call(f, kernels_.forward);
  }

  void backward() {
    const Problem& p = in_.p;
    const CellInfo& cell = p.info();
    dgx = Gradients<X, D>(p.gate_elements());
    if (cell.own_gate >= 0) dgh_own = Gradients<X, D>(p.T * p.B * p.H);
    if (cell.projected()) dh_total = Gradients<X, D>(p.T * p.B * p.P);
    dh0 = Buffer<float>(p.B * p.P), dc0 = Buffer<float>(p.has_cell_state() ? p.B * p.H : 0);
    Tensor<X> dy(in_.dy), dc(in_.dc), dh_last(in_.dh_last), dc_last(in_.dc_last);
    cpu::Backward<X, D> g;
    g.fixed = fixed.empty() ? nullptr : fixed.data();
    g.extra = extra.data(), g.y = y.data(), g.c = c.data();
    g.dy = in_.option.dy ? dy.data() : nullptr, g.dc = in_.option.dc ? dc.data() : nullptr;
    g.dh_last = dh_last.data(), g.dc_last = dc_last.data();
    g.dgx = dgx.data(), g.dgh_own = dgh_own.data(), g.dh_total = dh_total.data();
    g.dh0 = dh0.data(), g.dc0 = dc0.data();
    if (input_) {
      dx = Buffer<float>(p.T * p.B * input_->I);
      g.dx = dx.data(), g.w_ih = input_->w_ih.data(), g.I = input_->I;
    }
    call(g, kernels_.backward);
  }

  template <class Arguments, class Function>
  void call(Arguments& a, Function function) {
    const Problem& p = in_.p;
    Tensor<X> w_hh(in_.w_hh), b_hh(in_.b_hh), w_hr(in_.w_hr), h0(in_.h0), c0(in_.c0);
    a.T = p.T, a.B = p.B, a.H = p.H, a.P = p.P, a.reverse = p.reverse, a.split = split_;
    a.w_hh = w_hh.data(), a.b_hh = b_hh.data(), a.w_hr = w_hr.data();
    a.lengths = in_.masks().lengths, a.resets = in_.masks().resets;
    a.h0 = h0.data(), a.c0 = c0.data();
    int64_t bytes = base_.workspace(p.cell, p.B, p.H, p.P, sizeof(X), split_);
    if (input_)
      bytes += base_.input_room(p.gate_width(), p.B, input_->I, sizeof(X), split_) +
               base_.input_gradient_room(p.gate_width(), input_->I, sizeof(X));
    Workspace workspace(bytes);
    a.workspace = workspace.data();
    function(p.cell, a);
    CHECK_IN(workspace.intact(), in_.label() + " workspace");
  }

  const cpu::NarrowKernels<X, D>& kernels_;
  const cpu::Kernels& base_;
  const Inputs& in_;
  cpu::Split split_;
  GivenInput<X>* input_;
};

}  // namespace narrow_scan
