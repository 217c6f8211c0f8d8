// Which sums the gradients of a scan's weights are: its cell's products, one after the other.
#pragma once

#include <algorithm>

#include "cpu/product.h"

namespace rnnfast::cpu {

// What a backward left, as Forward and Backward name it, and where the gradients go: null where
// nobody wants them.
template <class S>
struct WeightGradients {
  int64_t I = 0, x_step = 0, x_row = 0;
  const S *x = nullptr, *y = nullptr, *extra = nullptr, *h0 = nullptr;
  const S *dgx = nullptr, *dgh_own = nullptr, *dh_total = nullptr;
  S *dw_ih = nullptr, *dw_hh = nullptr, *dw_hr = nullptr, *db_ih = nullptr, *db_hh = nullptr;
};

template <class S>
class WeightSums {
 public:
  // H, P: of the scan. `sums` has its sizes, lengths and resets.
  WeightSums(const CellInfo& cell, int64_t H, int64_t P, const WeightGradients<S>& w, Sums<S>& sums)
      : w_(w), H_(H), P_(P), G_(cell.gates), sums_(sums) {
    const int64_t B = sums.B;
    sums.operand_count = kOperands;
    if (w.dw_ih) sums.operands[kX] = {w.x, w.I, w.x_step, w.x_row, nullptr};
    sums.operands[kH] = {w.y, P, B * P, P, w.h0};
    if (cell.has_extra()) sums.operands[kExtra] = {w.extra, H, B * H, H, nullptr};
    for (int p = 0; p < cell.phase_count; ++p) {
      const Phase& phase = cell.phases[p];
      if (phase.matrix == Matrix::kWhr) {
        SumGradients<S>& g = add(w.dh_total, P, P);
        g.products[operand_of(phase)] = {w.dw_hr, H};
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

  SumGradients<S>& add(const S* values, int64_t row, int64_t M) {
    SumGradients<S>& g = sums_.gradients[sums_.gradient_count++];
    g.values = values, g.row = row, g.M = M;
    return g;
  }

  // The gate whose product enters by itself is the last of its phase.
  void of_gates(const Phase& phase, int own_gate) {
    const int end = phase.first + phase.gates;
    const bool apart = own_gate >= phase.first && own_gate < end;
    const int shared = apart ? end - 1 : end;
    if (shared > phase.first) {
      SumGradients<S>& g = add(w_.dgx + phase.first * H_, G_ * H_, (shared - phase.first) * H_);
      of_input(g, phase.first);
      of_state(g, phase, phase.first);
    }
    if (!apart) return;
    of_input(add(w_.dgx + own_gate * H_, G_ * H_, H_), own_gate);
    of_state(add(w_.dgh_own, H_, H_), phase, own_gate);
  }

  void of_input(SumGradients<S>& g, int gate) {
    if (w_.dw_ih) g.products[kX] = {w_.dw_ih + gate * H_ * w_.I, w_.I};
    if (w_.db_ih) g.biases[0] = w_.db_ih + gate * H_;
  }
  void of_state(SumGradients<S>& g, const Phase& phase, int gate) {
    const int64_t width = phase.operand == kOperandH ? P_ : H_;
    if (w_.dw_hh) g.products[operand_of(phase)] = {w_.dw_hh + gate * H_ * width, width};
    if (w_.db_hh) g.biases[1] = w_.db_hh + gate * H_;
  }

  const WeightGradients<S>& w_;
  const int64_t H_, P_;
  const int G_;
  Sums<S>& sums_;
};

inline GemmTimes call(const Sums<float>& s) { return kernels().sums_f32(s); }
inline GemmTimes call(const Sums<double>& s) { return kernels().sums_f64(s); }
inline int64_t room_of(const Sums<float>& s) { return kernels().sums_room_f32(s); }
inline int64_t room_of(const Sums<double>& s) { return kernels().sums_room_f64(s); }

// On at most n threads; scratch(bytes) returns memory.
template <class S, class Scratch>
void add_up(Sums<S>& s, int n, const Scratch& scratch) {
  constexpr double kLeastWork = 1e5;  // multiply-adds that are worth a thread
  double work = 0;
  for (int g = 0; g < s.gradient_count; ++g) {
    for (int o = 0; o < s.operand_count; ++o) {
      if (s.gradients[g].products[o].to) work += double(s.gradients[g].M) * s.operands[o].N;
    }
  }
  n = crowd().known() ? 1 : n;
  s.threads = static_cast<int>(std::min<double>(n, 1 + work * s.T * s.B / kLeastWork));
  const auto begin = reinterpret_cast<uintptr_t>(scratch(room_of(s) + 64));
  s.workspace = reinterpret_cast<void*>((begin + 63) & ~uintptr_t(63));
  note_waiting(call(s));
}

}  // namespace rnnfast::cpu
