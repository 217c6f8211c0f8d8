// What a scan needs beside its tensors: packed weights, a row of zeros, and each thread's list of
// the sequences that are alive in the step at hand.
#pragma once

#include "cpu/panel.h"
#include "cpu/team.h"
#include "cpu/unrolled.h"
#include "scan/rules.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// The live sequences of a step, and where each one's previous state (or gradient) is read. State: as
// the cell's formulas read it; E: as products multiply it.
template <class E, class State>
struct LiveRows {
  int64_t n = 0;
  int64_t* b = nullptr;
  SumOf<E>* gates = nullptr;  // forward: row b of the step's is b · G·H from here
  const State** h = nullptr;
  const State** c = nullptr;
  const E** factor = nullptr;  // forward: what is multiplied, h
  const E** extra = nullptr;   // and saved[G]
  const E** dgx = nullptr;     // backward: of all gates,
  const E** dgh = nullptr;     // that of the gate kOwnGate,
  const E** total = nullptr;   // and of the output
};

constexpr int64_t kLine = 64;  // bytes of a cache line
constexpr int64_t kRowArrays = 7;

// 8-byte elements of one thread's lists, with room to keep threads on lines of their own.
constexpr int64_t list_elements(int64_t B) { return (B + 8) * kRowArrays; }

// Of a phase's product: how many outputs it has, how many values each (a unit's gates), and how
// wide its operand is.
constexpr int64_t outputs_of(const Phase& phase, int64_t H, int64_t P) {
  return phase.matrix == Matrix::kWhr ? P : H;
}
constexpr int values_of(const Phase& phase) {
  return phase.matrix == Matrix::kWhr ? 1 : phase.gates;
}
constexpr int64_t operand_width(const Phase& phase, int64_t H, int64_t P) {
  return phase.operand == kOperandH ? P : H;
}

// Vectors of outputs in a panel of forward's product; backward's have kWide of one value each.
constexpr int kWide = 4;
constexpr int panel_units(const Phase& phase) {
  return values_of(phase) == 1 ? kWide : values_of(phase) == 2 ? 2 : 1;
}

// Elements of a packed matrix of `outputs` (each of `values`) by K, and of its bias, padded to
// whole panels of at most kWide vectors of outputs.
template <class S>
constexpr int64_t packed_elements(int64_t outputs, int64_t values, int64_t K) {
  constexpr int64_t kWidth = kWide * Vec<S>::kLanes;
  return divide_up(outputs, kWidth) * kWidth * values * (K + 1);
}

// Elements S of what ForwardPass keeps of states that are stored in 16 bits, and of their sums.
constexpr int64_t kept_elements(int64_t B, int64_t H, int64_t P) { return 2 * B * P + 2 * B * H; }

// What ForwardPass and BackwardPass take, whichever is more.
template <class X>
int64_t workspace_bytes(const CellInfo& cell, int64_t B, int64_t H, int64_t P, Split split) {
  using S = Wide<X>;
  int64_t forward = 0, backward = 0;
  for (int p = 0; p < cell.phase_count; ++p) {
    const Phase& phase = cell.phases[p];
    const int64_t outputs = outputs_of(phase, H, P), K = operand_width(phase, H, P);
    forward += packed_elements<S>(outputs, values_of(phase), K);
    backward += packed_elements<S>(K, 1, values_of(phase) * outputs);
  }
  const int64_t zeros = H > P ? H : P, threads = int64_t(split.rows) * split.units;
  const int64_t kept = kNarrow<X> ? kept_elements(B, H, P) : 0;
  const int64_t elements = (forward > backward ? forward : backward) + 2 * zeros + kept;
  const int64_t pieces = 2 * cell.phase_count + 6;
  return elements * int64_t(sizeof(S)) + threads * list_elements(B) * 8 + pieces * kLine;
}

// Hands out pieces of the workspace, each on a cache line of its own.
class Arena {
 public:
  explicit Arena(void* begin) : next_(reinterpret_cast<uintptr_t>(begin)) {}

  template <class T>
  T* take(int64_t n) {
    next_ = (next_ + kLine - 1) & ~uintptr_t(kLine - 1);
    T* piece = reinterpret_cast<T*>(next_);
    next_ += static_cast<uintptr_t>(n) * sizeof(T);
    return piece;
  }

 private:
  uintptr_t next_;
};

// A packed matrix: panels of `width` columns and, where the product has one, their bias.
template <class E>
class Panels {
  using Packed = PackedOf<E>;
  using S = SumOf<E>;

 public:
  Panels() = default;
  // Room for `columns` of K values.
  Panels(Arena& arena, int64_t columns, int64_t width, int64_t K, bool biased)
      : count(divide_up(columns, width)),
        width_(width),
        K_(packed_steps<E>(K)),
        values_(arena.take<Packed>(count * width * K_)),
        biases_(biased ? arena.take<S>(count * width) : nullptr) {}

  Packed* panel(int64_t q) const { return values_ + q * width_ * K_; }
  S* bias(int64_t q) const { return biases_ ? biases_ + q * width_ : nullptr; }

  int64_t count = 0;

 private:
  int64_t width_ = 0, K_ = 0;  // in packed steps
  Packed* values_ = nullptr;
  S* biases_ = nullptr;
};

// The lists of thread `place`, out of those of the whole team.
template <class E, class State>
LiveRows<E, State> live_rows_of(const Place& place, char* lists, int64_t B) {
  const int64_t stride = B + 8;
  int64_t* base = reinterpret_cast<int64_t*>(lists) + place.id() * list_elements(B);
  LiveRows<E, State> rows;
  rows.b = base;
  rows.h = reinterpret_cast<const State**>(base + stride);
  rows.c = reinterpret_cast<const State**>(base + 2 * stride);
  rows.extra = rows.dgx = reinterpret_cast<const E**>(base + 3 * stride);
  rows.dgh = reinterpret_cast<const E**>(base + 4 * stride);
  rows.total = reinterpret_cast<const E**>(base + 5 * stride);
  rows.factor = reinterpret_cast<const E**>(base + 6 * stride);
  return rows;
}

template <class X>
Rules rules_of(const Scan<X>& scan) {
  return {scan.T, scan.B, scan.lengths, scan.resets, scan.reverse};
}

template <class X>
inline void copy(X* to, const X* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <class X>
inline void fill_zero(X* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = X{};
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
