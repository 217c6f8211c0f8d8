// Which sums the gradients of a scan's weights are: its cell's products, one after the other.
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/product.h"

namespace rnnfast::cpu {

// What a backward left, as Forward and Backward name it, and where the gradients go: null where
// nobody wants them.
template <class D, class X = D>
struct WeightGradients {
  using S = Wide<D>;
  int64_t I = 0, x_step = 0, x_row = 0;
  const X *x = nullptr, *y = nullptr, *extra = nullptr, *h0 = nullptr;
  const D *dgx = nullptr, *dgh_own = nullptr, *dh_total = nullptr;
  // With groups (Sums) one of each group behind the other.
  S *dw_ih = nullptr, *dw_hh = nullptr, *dw_hr = nullptr, *db_ih = nullptr, *db_hh = nullptr;
};

template <class D, class X = D>
class WeightSums {
 public:
  // H, P: of the scan. `sums` has its sizes, lengths and resets.
  WeightSums(const CellInfo& cell, int64_t H, int64_t P, const WeightGradients<D, X>& w,
             Sums<D, X>& sums)
      : w_(w), H_(H), P_(P), G_(cell.gates), sums_(sums) {
    const int64_t B = sums.B;
    sums.operand_count = kOperands;
    if (w.dw_ih) sums.operands[kX] = {w.I, {{w.x, w.x_step, w.x_row, nullptr}}};
    sums.operands[kH] = {P, {{w.y, B * P, P, w.h0}}};
    if (cell.has_extra()) sums.operands[kExtra] = {H, {{w.extra, B * H, H, nullptr}}};
    for (int p = 0; p < cell.phase_count; ++p) {
      const Phase& phase = cell.phases[p];
      if (phase.matrix == Matrix::kWhr) {
        SumGradients<D>& g = add(w.dh_total, P, P);
        g.products[operand_of(phase)] = {w.dw_hr, H, P * H};
      } else {
        of_gates(phase, cell.own_gate);
      }
    }
    for (int o = 0; o < kOperands; ++o) {  // what nothing is multiplied with is not packed
      bool wanted = false;
      for (int g = 0; g < sums.gradient_count; ++g)
        wanted |= sums.gradients[g].products[o].to != nullptr;
      if (!wanted) sums.operands[o].N = 0;
    }
  }

 private:
  enum { kX, kH, kExtra, kOperands };

  static int operand_of(const Phase& phase) { return phase.operand == kOperandH ? kH : kExtra; }

  SumGradients<D>& add(const D* values, int64_t row, int64_t M) {
    SumGradients<D>& g = sums_.gradients[sums_.gradient_count++];
    g.terms[0] = {values, row}, g.M = M, g.bias_group = G_ * H_;
    return g;
  }

  // The gate whose product enters by itself is the last of its phase.
  void of_gates(const Phase& phase, int own_gate) {
    const int end = phase.first + phase.gates;
    const bool apart = own_gate >= phase.first && own_gate < end;
    const int shared = apart ? end - 1 : end;
    if (shared > phase.first) {
      SumGradients<D>& g = add(w_.dgx + phase.first * H_, G_ * H_, (shared - phase.first) * H_);
      of_input(g, phase.first);
      of_state(g, phase, phase.first);
    }
    if (!apart) return;
    of_input(add(w_.dgx + own_gate * H_, G_ * H_, H_), own_gate);
    of_state(add(w_.dgh_own, H_, H_), phase, own_gate);
  }

  void of_input(SumGradients<D>& g, int gate) {
    if (w_.dw_ih) g.products[kX] = {w_.dw_ih + gate * H_ * w_.I, w_.I, G_ * H_ * w_.I};
    if (w_.db_ih) g.biases[0] = w_.db_ih + gate * H_;
  }
  void of_state(SumGradients<D>& g, const Phase& phase, int gate) {
    const int64_t width = phase.operand == kOperandH ? P_ : H_;
    if (w_.dw_hh)
      g.products[operand_of(phase)] = {w_.dw_hh + gate * H_ * width, width, G_ * H_ * width};
    if (w_.db_hh) g.biases[1] = w_.db_hh + gate * H_;
  }

  const WeightGradients<D, X>& w_;
  const int64_t H_, P_;
  const int G_;
  Sums<D, X>& sums_;
};

// The functions for sums of these types.
template <class D, class X>
auto sums_of(const Kernels& k) {
  if constexpr (std::is_same_v<D, BFloat16>) {
    return std::make_pair(k.dots->sums, k.dots->sums_room);
  } else if constexpr (std::is_same_v<X, BFloat16>) {
    return std::make_pair(k.bf16.sums, k.bf16.sums_room);
  } else if constexpr (std::is_same_v<X, Half>) {
    return std::make_pair(k.f16.sums, k.f16.sums_room);
  } else if constexpr (std::is_same_v<X, float>) {
    return std::make_pair(k.sums_f32, k.sums_room_f32);
  } else {
    return std::make_pair(k.sums_f64, k.sums_room_f64);
  }
}

// On at most n threads; scratch(bytes) returns memory.
template <class D, class X, class Scratch>
void add_up(Sums<D, X>& s, int n, const Scratch& scratch) {
  const auto [run, room] = sums_of<D, X>(kernels());
  double work = 0;
  for (int g = 0; g < s.gradient_count; ++g) {
    for (int o = 0; o < s.operand_count; ++o) {
      if (s.gradients[g].products[o].to) work += double(s.gradients[g].M) * s.operands[o].N;
    }
  }
  s.threads = product_threads(n, work * s.T * s.B, sizeof(Wide<D>));
  const auto begin = reinterpret_cast<uintptr_t>(scratch(room(s) + 64));
  s.workspace = reinterpret_cast<void*>((begin + 63) & ~uintptr_t(63));
  run(s);
}

}  // namespace rnnfast::cpu
