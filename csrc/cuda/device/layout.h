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
//
// So no kernel reads a bias, and a slot of D times x or h is a weight's gradient.
//
// Saved slots of 16-bit storage: values of a sigmoid and of a tanh as fixed point (an error of
// 8e-6 and 1.5e-5; bf16 would cost 2e-3), q and u in the storage dtype. Of 32-bit storage: floats.
#pragma once

#include "cells/list.h"

namespace rnnfast::cuda {

enum class SlotKind { kSigmoid, kTanh, kPlain };

// Slots of a cell; gate of the recurrent product that D's slot s multiplies, in kRecurrentSlot.
template <template <class> class Cell>
struct Slots;

template <>
struct Slots<RnnTanh> {
  static constexpr int kSlots = 1;
  static constexpr SlotKind kKind[1] = {SlotKind::kPlain};
};

template <>
struct Slots<RnnRelu> : Slots<RnnTanh> {};

template <>
struct Slots<Lstm> {
  static constexpr int kSlots = 4;
  static constexpr SlotKind kKind[4] = {SlotKind::kSigmoid, SlotKind::kSigmoid, SlotKind::kTanh,
                                        SlotKind::kSigmoid};
};

template <>
struct Slots<LstmProj> : Slots<Lstm> {};

template <>
struct Slots<Gru> {
  static constexpr int kSlots = 4;
  static constexpr SlotKind kKind[4] = {SlotKind::kSigmoid, SlotKind::kSigmoid, SlotKind::kTanh,
                                        SlotKind::kPlain};
};

template <>
struct Slots<GruResetBefore> : Slots<Gru> {};

constexpr int slots_of(CellId id) {
  return id == CellId::kRnnTanh || id == CellId::kRnnRelu ? 1 : 4;
}

}  // namespace rnnfast::cuda
