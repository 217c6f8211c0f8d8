// What the tests of the host kernels run: random inputs, what the reference makes of them, and one
// run of a set of kernels in memory that shows every element not written and every one beyond.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "random.h"
#include "reference.h"

namespace cpu_scan {

using namespace rnnfast;
using Numbers = std::vector<double>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kGuard = 0;  // the sanitizer has its own, which also catches reads
#else
constexpr size_t kGuard = 64;
#endif

// Every set of kernels that this processor has.
inline std::vector<const cpu::Kernels*> present() {
  std::vector<const cpu::Kernels*> found = {&cpu::kernels_baseline};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    found.push_back(&cpu::kernels_avx2);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(&cpu::kernels_avx512);
  }
#endif
  return found;
}

// Exactly n elements, NaN until written, and a guard behind them that must stay as it is.
template <class S>
class Buffer {
 public:
  explicit Buffer(int64_t n = 0) : n_(n), values_(n + kGuard, static_cast<S>(kNaN)) {
    std::fill(values_.begin() + n, values_.end(), kMark);
  }
  explicit Buffer(const Numbers& from) : Buffer(static_cast<int64_t>(from.size())) {
    std::transform(from.begin(), from.end(), values_.begin(), [](double x) { return S(x); });
  }

  S* data() { return n_ == 0 ? nullptr : values_.data(); }
  int64_t size() const { return n_; }
  S operator[](int64_t k) const { return values_[k]; }
  bool intact() const {
    return std::all_of(values_.begin() + n_, values_.end(), [](S x) { return x == kMark; });
  }
  bool same_bits(const Buffer& other) const {
    return n_ == other.n_ &&
           (n_ == 0 || std::memcmp(values_.data(), other.values_.data(), n_ * sizeof(S)) == 0);
  }

 private:
  static constexpr S kMark = S(-77);
  int64_t n_;
  std::vector<S> values_;
};

// Exactly `bytes`, aligned to a cache line and filled with NaNs, and a guard behind them.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes) {
    if (posix_memalign(&memory_, 64, bytes + kGuard) != 0) std::abort();
    std::memset(memory_, 0xff, bytes + kGuard);
  }
  Workspace(const Workspace&) = delete;
  ~Workspace() { std::free(memory_); }

  void* data() { return memory_; }
  bool intact() const {
    const auto* bytes = static_cast<const unsigned char*>(memory_);
    return std::all_of(bytes + bytes_, bytes + bytes_ + kGuard, [](int x) { return x == 0xff; });
  }

 private:
  int64_t bytes_;
  void* memory_ = nullptr;
};

struct Option {
  const char* name;
  bool reverse, lengths, resets, bias, dy, dc;
};

constexpr Option kOptions[] = {
    {"plain", false, false, false, true, true, true},
    {"reverse, no bias, no dc", true, false, false, false, true, false},
    {"lengths", false, true, false, true, true, true},
    {"resets, no dy", false, false, true, true, false, true},
    {"reverse lengths", true, true, false, true, true, true},
    {"reverse lengths resets", true, true, true, true, true, true},
};

// What a scan reads. Every value is a float, so that both dtypes get the same ones; what lies past
// a sequence's end is NaN.
struct Inputs {
  Problem p;
  Option option;
  Numbers gx, h0, c0, w_hh, b_hh, w_hr, dy, dc, dh_last, dc_last;
  std::vector<int64_t> lengths;  // empty: none
  std::vector<char> resets;      // empty: none

  Inputs(CellId cell, int64_t T, int64_t B, int64_t H, const Option& o) : option(o) {
    p.cell = cell, p.training = true, p.reverse = o.reverse;
    p.T = T, p.B = B, p.H = H, p.P = H;
    if (p.info().projected()) p.P = H >= 70 ? H - 1 : (H + 1) / 2;
    Random random(static_cast<uint32_t>(T + 10 * B + 100 * H));
    const auto numbers = [&](int64_t count, double scale) {
      Numbers out = random.vector(count, scale);
      for (double& x : out) x = static_cast<float>(x);
      return out;
    };
    const int64_t GH = p.gate_width(), c = p.has_cell_state() ? H : 0;
    const double scale = 1 / std::sqrt(static_cast<double>(H));
    gx = numbers(T * B * GH, 2), h0 = numbers(B * p.P, 1), c0 = numbers(B * c, 1);
    w_hh = numbers(GH * p.P, scale), b_hh = numbers(o.bias ? GH : 0, 1);
    w_hr = numbers(p.info().projected() ? p.P * H : 0, scale);
    dy = numbers(T * B * p.P, 1), dc = numbers(T * B * c, 1);
    dh_last = numbers(B * p.P, 1), dc_last = numbers(B * c, 1);
    if (!o.dy) std::fill(dy.begin(), dy.end(), 0);
    if (!o.dc) std::fill(dc.begin(), dc.end(), 0);
    if (o.resets) {
      resets.resize(T * B);
      for (char& r : resets) r = random.uniform(0, 1) < 0.3;
    }
    if (o.lengths) {
      lengths.resize(B);
      for (int64_t b = 0; b < B; ++b) lengths[b] = b == 0 ? T : b == 1 ? 0 : random.integer(T + 1);
      for (Numbers* values : {&gx, &dy, &dc}) poison_padding(*values);
    }
  }

  bool alive(int64_t row) const { return lengths.empty() || row / p.B < lengths[row % p.B]; }
  int64_t length(int64_t b) const { return lengths.empty() ? p.T : lengths[b]; }
  reference::Masks masks() const {
    return {lengths.empty() ? nullptr : lengths.data(),
            resets.empty() ? nullptr : reinterpret_cast<const bool*>(resets.data())};
  }
  std::string label() const {
    return std::string(p.info().name) + " T" + std::to_string(p.T) + " B" + std::to_string(p.B) +
           " H" + std::to_string(p.H) + " " + option.name;
  }

 private:
  void poison_padding(Numbers& values) const {
    const int64_t rows = p.T * p.B, width = rows ? static_cast<int64_t>(values.size()) / rows : 0;
    for (int64_t row = 0; row < rows; ++row) {
      if (!alive(row)) std::fill_n(values.begin() + row * width, width, kNaN);
    }
  }
};

struct Expected {
  Numbers y, c, h_last, c_last, saved, dgx, dh0, dc0, dw_hh, db_hh, dw_hr;

  explicit Expected(const Inputs& in, double clip = 0)
      : y(in.p.output_elements()),
        c(in.p.cell_state_elements()),
        h_last(in.h0.size()),
        c_last(in.c0.size()),
        saved(in.p.saved_elements(), kNaN),
        dgx(in.gx.size()),
        dh0(in.h0.size()),
        dc0(in.c0.size()),
        dw_hh(in.w_hh.size()),
        db_hh(in.p.gate_width()),
        dw_hr(in.w_hr.size()) {
    const reference::Weights<double> w{in.w_hh.data(), in.option.bias ? in.b_hh.data() : nullptr,
                                       in.w_hr.data()};
    const reference::Forward<double> f{in.gx.data(), in.h0.data(),  in.c0.data(),  y.data(),
                                       c.data(),     h_last.data(), c_last.data(), saved.data()};
    reference::Backward<double> g;
    g.h0 = in.h0.data(), g.c0 = in.c0.data(), g.y = y.data(), g.c = c.data();
    g.saved = saved.data(), g.dy = in.dy.data(), g.dc = in.dc.empty() ? nullptr : in.dc.data();
    g.dh_last = in.dh_last.data(), g.dc_last = in.dc_last.data();
    g.clip = TimeClip<double>::of(clip);
    g.dgx = dgx.data(), g.dh0 = dh0.data(), g.dc0 = dc0.data();
    g.dw_hh = dw_hh.data(), g.db_hh = db_hh.data(), g.dw_hr = dw_hr.data();
    dispatch(in.p.cell, [&](auto tag) {
      reference::scan_forward<decltype(tag)::template Cell>(in.p, w, in.masks(), f);
      reference::scan_backward<decltype(tag)::template Cell>(in.p, w, in.masks(), g);
    });
  }
};

// One forward of a set of kernels and, if training, the backward; with w_ih [G·H, I] of a scan that
// makes the gradient of its input too.
template <class S>
class Run {
 public:
  Buffer<S> gates, extra, y, c, h_last, c_last, dgx, dgh_own, dh_total, dh0, dc0, dx;
  std::vector<int16_t> fixed;  // the saved gates, if kept so
  int dissolved = 0;           // of its passes, those whose threads had to leave

  Run(const cpu::Kernels& kernels, const Inputs& in, cpu::Split split, bool training, bool every_c,
      bool keep_fixed = false, const Numbers& w_ih = {})
      : gates(in.gx), kernels_(kernels), in_(in), split_(split), w_ih_(w_ih) {
    if (keep_fixed) fixed.assign(gates.size() + kGuard, kMark);
    const Problem& p = in.p;
    const bool two_states = p.has_cell_state(), has_extra = p.info().saved > p.info().gates;
    if (has_extra) extra = Buffer<S>((training ? p.T : 1) * p.B * p.H);
    y = Buffer<S>(p.T * p.B * p.P), h_last = Buffer<S>(p.B * p.P);
    if (two_states) c_last = Buffer<S>(p.B * p.H);
    if (two_states && every_c) c = Buffer<S>(p.T * p.B * p.H);
    forward(training);
    if (training) backward();
    for (const Buffer<S>* output : outputs()) CHECK_IN(output->intact(), in.label());
    if (!keep_fixed) return;
    const auto end = fixed.begin() + gates.size();
    CHECK_IN(std::all_of(end, fixed.end(), [](int x) { return x == kMark; }), in.label());
    fixed.resize(gates.size());
  }

  std::vector<const Buffer<S>*> outputs() const {
    return {&gates, &extra, &y, &c, &h_last, &c_last, &dgx, &dgh_own, &dh_total, &dh0, &dc0, &dx};
  }

 private:
  static constexpr int16_t kMark = -77;

  void forward(bool training) {
    cpu::Forward<S> f;
    f.training = training;
    f.fixed = fixed.empty() ? nullptr : fixed.data();
    f.gates = gates.data(), f.extra = extra.data(), f.y = y.data(), f.c = c.data();
    f.h_last = h_last.data(), f.c_last = c_last.data();
    call(f, kernels_.forward_f32, kernels_.forward_f64);
  }

  void backward() {
    const Problem& p = in_.p;
    dgx = Buffer<S>(p.gate_elements());
    if (p.info().own_gate >= 0) dgh_own = Buffer<S>(p.T * p.B * p.H);
    if (p.info().projected()) dh_total = Buffer<S>(p.T * p.B * p.P);
    dh0 = Buffer<S>(in_.dh_last), dc0 = Buffer<S>(in_.dc_last);
    Buffer<S> dy(in_.dy), dc(in_.dc);
    cpu::Backward<S> g;
    g.gates = fixed.empty() ? gates.data() : nullptr;
    g.fixed = fixed.empty() ? nullptr : fixed.data();
    g.extra = extra.data(), g.y = y.data(), g.c = c.data();
    g.dy = in_.option.dy ? dy.data() : nullptr, g.dc = in_.option.dc ? dc.data() : nullptr;
    g.dgx = dgx.data(), g.dgh_own = dgh_own.data(), g.dh_total = dh_total.data();
    g.dh0 = dh0.data(), g.dc0 = dc0.data();
    const int64_t I = w_ih_.size() / p.gate_width(), rows = p.T * p.B;
    if (I > 0) dx = Buffer<S>(rows * I), g.dx = dx.data(), g.w_ih = w_ih_.data(), g.I = I;
    call(g, kernels_.backward_f32, kernels_.backward_f64,
         I > 0 ? kernels_.input_gradient_room(p.gate_width(), I, sizeof(S)) : 0);
  }

  template <class Arguments, class F32, class F64>
  void call(Arguments& a, F32 f32, F64 f64, int64_t more = 0) {
    const Problem& p = in_.p;
    Buffer<S> w_hh(in_.w_hh), b_hh(in_.b_hh), w_hr(in_.w_hr), h0(in_.h0), c0(in_.c0);
    a.T = p.T, a.B = p.B, a.H = p.H, a.P = p.P, a.reverse = p.reverse, a.split = split_;
    a.w_hh = w_hh.data(), a.b_hh = b_hh.data(), a.w_hr = w_hr.data();
    a.lengths = in_.masks().lengths, a.resets = in_.masks().resets;
    a.h0 = h0.data(), a.c0 = c0.data();
    Workspace workspace(kernels_.workspace(p.cell, p.B, p.H, p.P, sizeof(S), split_) + more);
    a.workspace = workspace.data();
    if constexpr (std::is_same_v<S, float>) {
      dissolved += f32(p.cell, a);
    } else {
      dissolved += f64(p.cell, a);
    }
    CHECK_IN(workspace.intact(), in_.label() + " workspace");
  }

  const cpu::Kernels& kernels_;
  const Inputs& in_;
  cpu::Split split_;
  Buffer<S> w_ih_;
};

}  // namespace cpu_scan
