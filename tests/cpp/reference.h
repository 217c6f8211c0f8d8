// The specification of a scan in C++: one sequence after the other, one step after the other, one
// unit after the other, on plain pointers. The kernels of every device are tested against it. Sums
// run in V, in index order.
//
// Shapes, row-major: T steps, B batch, H hidden size, G gates, P width of h (H unless the cell is
// projected), K = kSaved. Tensors that hold c exist for cells with two states, w_hr for projected
// cells.
// What lengths and resets mean says rules.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "scan/problem.h"
#include "scan/rules.h"
#include "scan/time_clip.h"

namespace rnnfast::reference {

template <class V>
struct Weights {
  const V* w_hh = nullptr;  // [G·H, P]
  const V* b_hh = nullptr;  // [G·H], or null: no bias
  const V* w_hr = nullptr;  // [P, H]
};

struct Masks {
  const int64_t* lengths = nullptr;  // [B], each in 0 .. T; or null: all T
  const bool* resets = nullptr;      // [T, B], or null: none

  Rules rules(const Problem& p) const { return {p.T, p.B, lengths, resets, p.reverse}; }
};

template <class V>
struct Forward {
  const V* gx = nullptr;  // [T, B, G·H], x·W_ihᵀ + b_ih
  const V* h0 = nullptr;  // [B, P]
  const V* c0 = nullptr;  // [B, H]
  V* y = nullptr;         // [T, B, P], out
  V* c = nullptr;         // [T, B, H], out
  V* h_last = nullptr;    // [B, P], out
  V* c_last = nullptr;    // [B, H], out
  V* saved = nullptr;     // [T, B, K, H], out; undefined past a sequence's end
};

template <class V>
struct Backward {
  const V* h0 = nullptr;  // as in Forward, like y, c and saved
  const V* c0 = nullptr;
  const V* y = nullptr;
  const V* c = nullptr;
  const V* saved = nullptr;
  const V* dy = nullptr;       // [T, B, P]
  const V* dc = nullptr;       // [T, B, H], gradient of Forward::c; null: 0
  const V* dh_last = nullptr;  // [B, P]
  const V* dc_last = nullptr;  // [B, H]
  TimeClip<V> clip;            // of dh and dc, after each step
  V* dgx = nullptr;            // [T, B, G·H], out
  V* dh0 = nullptr;            // [B, P], out
  V* dc0 = nullptr;            // [B, H], out
  V* dw_hh = nullptr;          // [G·H, P], out
  V* db_hh = nullptr;          // [G·H], out, or null
  V* dw_hr = nullptr;          // [P, H], out
};

namespace detail {

// out = W·x (+ bias); w is [rows, x.size()].
template <class V>
std::vector<V> product(const V* w, const V* bias, int64_t rows, const std::vector<V>& x) {
  const int64_t cols = static_cast<int64_t>(x.size());
  std::vector<V> out(rows);
  for (int64_t i = 0; i < rows; ++i) {
    V sum = bias ? bias[i] : V(0);
    for (int64_t k = 0; k < cols; ++k) sum += w[i * cols + k] * x[k];
    out[i] = sum;
  }
  return out;
}

// dx += Wᵀ·dout; w is [dout.size(), dx.size()].
template <class V>
void add_product_transposed(const V* w, const std::vector<V>& dout, std::vector<V>& dx) {
  const int64_t cols = static_cast<int64_t>(dx.size());
  for (size_t i = 0; i < dout.size(); ++i) {
    for (int64_t k = 0; k < cols; ++k) dx[k] += w[i * cols + k] * dout[i];
  }
}

// dw += dout·xᵀ; dw is [dout.size(), x.size()].
template <class V>
void add_outer(const std::vector<V>& dout, const std::vector<V>& x, V* dw) {
  const int64_t cols = static_cast<int64_t>(x.size());
  for (size_t i = 0; i < dout.size(); ++i) {
    for (int64_t k = 0; k < cols; ++k) dw[i * cols + k] += dout[i] * x[k];
  }
}

template <class V>
void add(const V* from, std::vector<V>& to) {
  for (size_t k = 0; k < to.size(); ++k) to[k] += from[k];
}

// The values of unit j in planes of H values each.
template <int N, class V>
void load(const V* planes, int64_t H, int64_t j, V (&to)[N]) {
  for (int k = 0; k < N; ++k) to[k] = planes[k * H + j];
}

template <int N, class V>
void store(const V (&from)[N], int64_t H, int64_t j, V* planes) {
  for (int k = 0; k < N; ++k) planes[k * H + j] = from[k];
}

// The state of one sequence, or its gradient. c is empty for cells with one state.
template <class V>
struct State {
  std::vector<V> h, c;

  void clear() {
    std::fill(h.begin(), h.end(), V(0));
    std::fill(c.begin(), c.end(), V(0));
  }

  void limit(const TimeClip<V>& clip) {
    for (V& g : h) g = limit_in_time(g, clip.bound, clip.limit);
    for (V& g : c) g = limit_in_time(g, clip.bound, clip.limit);
  }

  // Row `row` of h [·, P] and c [·, H].
  static State read(const Problem& p, const V* h, const V* c, int64_t row) {
    State state;
    state.h.assign(h + row * p.P, h + (row + 1) * p.P);
    if (p.has_cell_state()) state.c.assign(c + row * p.H, c + (row + 1) * p.H);
    return state;
  }

  void write(const Problem& p, V* h_out, V* c_out, int64_t row) const {
    std::copy(h.begin(), h.end(), h_out + row * p.P);
    if (p.has_cell_state()) std::copy(c.begin(), c.end(), c_out + row * p.H);
  }

  // What a cell calls s for unit j. A projected h has no unit j, and its cell does not ask for it.
  template <class C>
  void unit(int64_t j, V (&s)[C::kStates]) const {
    s[0] = kProjected<C> ? V(0) : h[j];
    if constexpr (C::kStates > 1) s[1] = c[j];
  }
};

// Plane k of planes [·, H].
template <class V>
std::vector<V> plane(const V* planes, int64_t H, int k) {
  return std::vector<V>(planes + k * H, planes + (k + 1) * H);
}

// What phase k of C multiplies.
template <class C, int k, class V>
std::vector<V> operand_of(const Problem& p, const State<V>& state, const V* saved) {
  constexpr int kOperand = C::kPhases[k].operand;
  return kOperand == kOperandH ? state.h : plane(saved, p.H, kOperand);
}

// One step from phase k on: replaces state. gx [G, H], saved [K, H].
template <class C, int k = 0, class V>
void step_forward(const Problem& p, const Weights<V>& w, const V* gx, State<V>& state, V* saved) {
  constexpr Phase kPhase = C::kPhases[k];
  constexpr int n = kPhase.gates;
  const std::vector<V> operand = operand_of<C, k>(p, state, saved);
  if constexpr (kPhase.matrix == Matrix::kWhr) {
    state.h = product<V>(w.w_hr, nullptr, p.P, operand);
  } else {
    const int64_t H = p.H, first = kPhase.first * H;
    const std::vector<V> gh =
        product(w.w_hh + first * p.P, w.b_hh ? w.b_hh + first : nullptr, n * H, operand);
    for (int64_t j = 0; j < H; ++j) {
      V gx_j[n], gh_j[n], s[C::kStates], s_new[C::kStates], saved_j[C::kSaved];
      load(gx + first, H, j, gx_j);
      load(gh.data(), H, j, gh_j);
      load(saved, H, j, saved_j);
      state.template unit<C>(j, s);
      C::forward(At<k>{}, gx_j, gh_j, s, s_new, saved_j);
      store(saved_j, H, j, saved);
      if constexpr (k + 1 < kGatePhases<C>) continue;
      if constexpr (!kProjected<C>) state.h[j] = s_new[0];
      if constexpr (C::kStates > 1) state.c[j] = s_new[1];
    }
  }
  if constexpr (k + 1 < kPhaseCount<C>) step_forward<C, k + 1>(p, w, gx, state, saved);
}

// The pointwise part of phase k, backward, of every unit; d [H]: the gradient of what it made.
template <class C, int k, class V>
void units_backward(const Problem& p, const State<V>& prev, const V* saved, const std::vector<V>& d,
                    State<V>& grad, V* dgx, V* dgh) {
  constexpr bool kLast = k + 1 == kGatePhases<C>;
  const int64_t H = p.H;
  for (int64_t j = 0; j < H; ++j) {
    V saved_j[C::kSaved], s[C::kStates], ds_new[C::kStates] = {d[j]}, ds[C::kStates],
                                         dgx_j[C::kGates], dgh_j[C::kGates];
    load(saved, H, j, saved_j);
    load(dgx, H, j, dgx_j);
    load(dgh, H, j, dgh_j);
    prev.template unit<C>(j, s);
    grad.template unit<C>(j, ds);
    if constexpr (kLast && C::kStates > 1) ds_new[1] = grad.c[j];
    C::backward(At<k>{}, ds_new, saved_j, s, dgx_j, dgh_j, ds);
    store(dgx_j, H, j, dgx);
    store(dgh_j, H, j, dgh);
    if constexpr (!kProjected<C>) grad.h[j] = ds[0];
    if constexpr (C::kStates > 1) grad.c[j] = ds[1];
  }
}

// One step up from phase k, whose output's gradient is d: `grad`, but for d the gradient of the
// step's new state, leaves as that of its previous state `prev`. dgx, dgh [G, H]. Adds to the
// gradients of the weights.
template <class C, int k, class V>
void step_backward(const Problem& p, const Weights<V>& w, const State<V>& prev, const V* saved,
                   const Backward<V>& io, const std::vector<V>& d, State<V>& grad, V* dgx, V* dgh) {
  constexpr Phase kPhase = C::kPhases[k];
  const std::vector<V> operand = operand_of<C, k>(p, prev, saved);
  std::vector<V> dvalue(operand.size());
  std::vector<V>& doperand = kPhase.operand == kOperandH ? grad.h : dvalue;
  if constexpr (kPhase.matrix == Matrix::kWhr) {
    add_product_transposed(w.w_hr, d, doperand);
    add_outer(d, operand, io.dw_hr);
  } else {
    const int64_t first = kPhase.first * p.H, end = first + kPhase.gates * p.H;
    units_backward<C, k>(p, prev, saved, d, grad, dgx, dgh);
    const std::vector<V> dproduct(dgh + first, dgh + end);
    add_product_transposed(w.w_hh + first * p.P, dproduct, doperand);
    add_outer(dproduct, operand, io.dw_hh + first * p.P);
    for (int64_t i = first; io.db_hh && i < end; ++i) io.db_hh[i] += dgh[i];
  }
  if constexpr (k > 0) step_backward<C, k - 1>(p, w, prev, saved, io, doperand, grad, dgx, dgh);
}

}  // namespace detail

// `p` must be valid, with training set (the reference always saves) and gates already projected (I
// = 0).
template <template <class> class Cell, class V>
void scan_forward(const Problem& p, const Weights<V>& w, const Masks& masks, const Forward<V>& io) {
  std::fill_n(io.y, p.output_elements(), V(0));
  if (p.has_cell_state()) std::fill_n(io.c, p.cell_state_elements(), V(0));

  const Rules rules = masks.rules(p);
  for (int64_t b = 0; b < p.B; ++b) {
    auto state = detail::State<V>::read(p, io.h0, io.c0, b);
    for (int64_t k = 0; k < rules.length(b); ++k) {
      const int64_t t = rules.time(k, b), row = t * p.B + b;
      if (rules.reset(t, b)) state.clear();
      detail::step_forward<Cell<V>>(p, w, io.gx + row * p.gate_width(), state,
                                    io.saved + row * Cell<V>::kSaved * p.H);
      state.write(p, io.y, io.c, row);
    }
    state.write(p, io.h_last, io.c_last, b);
  }
}

template <template <class> class Cell, class V>
void scan_backward(const Problem& p, const Weights<V>& w, const Masks& masks,
                   const Backward<V>& io) {
  using C = Cell<V>;
  std::fill_n(io.dgx, p.gate_elements(), V(0));
  std::fill_n(io.dw_hh, p.gate_width() * p.P, V(0));
  if (io.db_hh) std::fill_n(io.db_hh, p.gate_width(), V(0));
  if (kProjected<C>) std::fill_n(io.dw_hr, p.P * p.H, V(0));

  const Rules rules = masks.rules(p);
  for (int64_t b = 0; b < p.B; ++b) {
    auto grad = detail::State<V>::read(p, io.dh_last, io.dc_last, b);
    for (int64_t k = rules.length(b) - 1; k >= 0; --k) {
      const int64_t t = rules.time(k, b), row = t * p.B + b;
      const bool reset = rules.reset(t, b);
      auto prev = rules.first(t, b)
                      ? detail::State<V>::read(p, io.h0, io.c0, b)
                      : detail::State<V>::read(p, io.y, io.c, rules.before(t) * p.B + b);
      if (reset) prev.clear();
      detail::add(io.dy + row * p.P, grad.h);
      if (io.dc) detail::add(io.dc + row * p.H, grad.c);
      std::vector<V> d(p.P), dgh(p.gate_width());
      d.swap(grad.h);
      detail::step_backward<C, kPhaseCount<C> - 1>(p, w, prev, io.saved + row * C::kSaved * p.H, io,
                                                   d, grad, io.dgx + row * p.gate_width(),
                                                   dgh.data());
      if (reset) grad.clear();
      grad.limit(io.clip);
    }
    grad.write(p, io.dh0, io.dc0, b);
  }
}

}  // namespace rnnfast::reference
