// Where the CUDA kernels keep a unit's gates, in memory and in the accumulators of a warp.
//
// In memory, gates are unit-major: gates [T, B, H, S], the S = kSlots values of a unit side by
// side, so that a thread loads them at once. What a slot holds; D are the gates' gradients:
//
// cell             before forward (x·W_ihᵀ + biases)     saved for backward  D, by backward
// rnn              gx + b_hh                             – (y is all)        dgx
// lstm, lstm_proj  gx + b_hh of i, f, g, o               i, f, g, o          dgx of i, f, g, o
// gru              gx_r + b_hr, gx_z + b_hz, gx_n, b_hn  r, z, n, q = gh_n   dgx of r, z, n; dgh_n
// gru_reset_before gx + b_hh of r, z, n; slot 3 unused   r, z, n, u = r·h    dgx of r, z, n; 0
// mgu              gx + b_hh of f, n; 2, 3 unused        f, n, u = f·h       dgx of f, n; 0, 0
//
// Others alike: the gates, of D too; then, in slot G, of a gate kOwnGate its bias or its dgh, and
// of what is saved the value beside the gates. So no kernel reads a bias, and a slot of D times x
// or h is a weight's gradient.
//
// Saved slots of 16-bit storage: values of a sigmoid and of a tanh as fixed point (an error of
// 8e-6 and 1.5e-5; bf16 would cost 2e-3), q and u in the storage dtype. Of 32-bit storage: floats.
#pragma once

#include "cells/list.h"

namespace rnnfast::cuda {

// A power of two, so that a unit's slots are one load. What W_hr multiplies is kept apart.
constexpr int slots_of(CellId id) {
  const CellInfo& cell = cell_info(id);
  const int values = cell.saved - (cell.projected() ? 1 : 0);
  int slots = 1;
  while (slots < values) slots *= 2;
  return slots;
}

template <template <class> class Cell>
struct Slots {
  static constexpr int kSlots = slots_of(kIdOf<Cell>);
  static_assert(Cell<float>::kOwnGate < 0 || kSlots > Cell<float>::kGates);
};

namespace detail {

template <class C>
constexpr Range slot_range(int slot) {
  return slot < C::kSaved ? C::kRange[slot] : Range::kPlain;
}

}  // namespace detail

template <template <class> class Cell, int kSlot>
inline constexpr Range kSlotRange = detail::slot_range<Cell<float>>(kSlot);

}  // namespace rnnfast::cuda
