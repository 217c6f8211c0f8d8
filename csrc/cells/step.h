// What a cell says of its step: which products it has, which values it saves, and what the
// pointwise part after each product reads and sets. Kernels go by these facts.
//
// A step is one phase or two. A phase is one product and the pointwise part after it. The first one
// multiplies h; the second multiplies a value that the first has made, the one saved beside those
// of the gates. A phase of W_hr has no pointwise part: its product is the output.
#pragma once

namespace rnnfast {

// Of a saved value: what bounds it, so that 16-bit storage can keep it in fixed point.
enum class Range { kSigmoid, kTanh, kPlain };

enum class Matrix { kWhh, kWhr };

inline constexpr int kOperandH = -1;

// Masks have bit k for saved value k, or for gate k.
struct Phase {
  Matrix matrix;
  int first, gates;  // of W_hh, the rows of which gates
  int operand;       // kOperandH, or the saved value kGates
  unsigned sets;     // the saved values that its forward sets,
  unsigned needs;    // and those of earlier phases that it reads
  unsigned grads;    // the gates whose dgx and dgh its backward sets, or completes where a later
                     // phase has set a part
};

template <class... K>
constexpr unsigned bits(K... k) {
  return ((1u << k) | ... | 0u);
}
constexpr unsigned all_bits(int n) { return (1u << n) - 1; }
constexpr bool has_bit(unsigned mask, int k) { return (mask >> k & 1) != 0; }

// Of a cell whose pointwise part is one.
constexpr Phase whole_step(int gates, int saved) {
  return {Matrix::kWhh, 0, gates, kOperandH, all_bits(saved), 0, all_bits(gates)};
}
constexpr Phase projection(int operand) { return {Matrix::kWhr, 0, 0, operand, 0, 0, 0}; }

// Which phase's function is called: forward(At<0>{}, …).
template <int p>
struct At {};

template <class C>
inline constexpr int kPhaseCount = int(sizeof(C::kPhases) / sizeof(Phase));
template <class C>
inline constexpr bool kProjected = C::kPhases[kPhaseCount<C> - 1].matrix == Matrix::kWhr;
// Phases of W_hh, which are those with a pointwise part.
template <class C>
inline constexpr int kGatePhases = kPhaseCount<C> - (kProjected<C> ? 1 : 0);
// Whether a value is saved beside those of the gates: saved[kGates].
template <class C>
inline constexpr bool kHasExtra = C::kSaved > C::kGates;

template <class C>
constexpr bool all_gates_bounded() {
  for (int g = 0; g < C::kGates; ++g) {
    if (C::kSavesOutput || C::kRange[g] == Range::kPlain) return false;
  }
  return true;
}
// Whether the saved values of all gates are bounded.
template <class C>
inline constexpr bool kBoundedGates = all_gates_bounded<C>();

// The saved values that the phases after p read as operands, or else.
template <class C>
constexpr unsigned needed_after(int p) {
  unsigned mask = 0;
  for (int q = p + 1; q < kPhaseCount<C>; ++q) {
    mask |= C::kPhases[q].needs | 1u << C::kPhases[q].operand;
  }
  return mask;
}

// The gates whose gradients the phases after p set: backward has been there.
template <class C>
constexpr unsigned grads_after(int p) {
  unsigned mask = 0;
  for (int q = p + 1; q < kPhaseCount<C>; ++q) mask |= C::kPhases[q].grads;
  return mask;
}

// Whether the facts fit together. Kernels count on it.
template <class C>
constexpr bool is_sound() {
  int gates = 0;
  unsigned set = 0;
  for (int p = 0; p < kPhaseCount<C>; ++p) {
    const Phase& phase = C::kPhases[p];
    if (phase.operand != (p == 0 ? kOperandH : C::kGates)) return false;
    if (p > 0 && !has_bit(set, C::kGates)) return false;
    if (phase.matrix == Matrix::kWhr) {
      if (p == 0 || C::kReadsH) return false;  // which has P values then
      continue;
    }
    if (phase.first != gates || phase.gates < 1) return false;
    if ((phase.needs & ~set) != 0 || (phase.sets & set) != 0) return false;
    gates += phase.gates;
    set |= phase.sets;
    if (C::kOwnGate >= phase.first && C::kOwnGate < gates - 1) return false;  // the phase's last
    const unsigned own = all_bits(gates) & ~all_bits(phase.first);
    if ((own & ~grads_after<C>(p - 1)) != 0) return false;  // complete when it is multiplied
    if (C::kSavesOutput) continue;
    if ((phase.sets & all_bits(C::kGates)) != own) return false;
  }
  return kPhaseCount<C> <= 2 && gates == C::kGates && set == all_bits(C::kSaved) &&
         grads_after<C>(-1) == all_bits(C::kGates) && C::kOwnGate < C::kGates &&
         (C::kSavesOutput ? C::kSaved == 1 : C::kSaved == C::kGates || C::kSaved == C::kGates + 1);
}

}  // namespace rnnfast
