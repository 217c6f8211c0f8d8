// The one list of the cells. A new cell is a header and a line here.
//
// What a cell offers to every kernel, for one hidden unit of one sequence; G = kGates:
//
//   kGates, kStates, kSaved; kPhases, kRange[kSaved] (step.h)
//   kOwnGate      the gate, the last of its phase, whose product enters by itself, so that its
//                 dgh is another than its dgx; -1: none
//   kReadsH       whether the pointwise parts read s[0], the h before the step
//   kSavesOutput  whether all that is saved is the output, which kernels have anyway; else the
//                 first G saved values are the gates', and one more may follow
//   forward(At<p>, gx[n], gh[n], s[kStates], s_new[kStates], saved[kSaved])
//   backward(At<p>, d[kStates], saved[kSaved], s[kStates], dgx[G], dgh[G], ds[kStates])
//
// Both for each phase p of W_hh. Forward goes up: gx = W_ih·x + b_ih and gh = W_hh·operand + b_hh
// are those of the phase's n gates; s is the state, s_new[0] the output; the last phase sets s_new.
// Backward goes down: d[0] is the gradient of what the phase made, of the output or of the next
// phase's operand, and d[1] that of s_new[1], in the last phase, else 0. dgx and dgh pass through
// all of them, so that one may leave a part for an earlier one. ds is the direct part of the
// gradient of s: the last phase sets it, the others add to it. The part through gh is W_hhᵀ·dgh,
// outside.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/mgu.h"
#include "cells/rnn.h"

// X(type, name in Python)
#define RNNFAST_CELLS(X)                \
  X(RnnTanh, "rnn_tanh")                \
  X(RnnRelu, "rnn_relu")                \
  X(Lstm, "lstm")                       \
  X(LstmProj, "lstm_proj")              \
  X(Gru, "gru")                         \
  X(GruResetBefore, "gru_reset_before") \
  X(Mgu, "mgu")

namespace rnnfast {

enum class CellId : int {
#define RNNFAST_CELL_ID(type, name) k##type,
  RNNFAST_CELLS(RNNFAST_CELL_ID)
#undef RNNFAST_CELL_ID
};

// A cell's facts where its type is only known at run time.
struct CellInfo {
  CellId id;
  std::string_view name;
  int gates, states, saved, own_gate;
  bool reads_h, saves_output;
  bool bounded_gates;  // the values of all gates: none is Range::kPlain
  int phase_count;
  const Phase* phases;
  const Range* range;

  constexpr bool projected() const { return phases[phase_count - 1].matrix == Matrix::kWhr; }
  constexpr int gate_phases() const { return phase_count - (projected() ? 1 : 0); }
  constexpr bool has_extra() const { return saved > gates; }
};

template <class C>
constexpr CellInfo info_of(CellId id, std::string_view name) {
  static_assert(is_sound<C>(), "the cell's facts contradict one another (cells/step.h)");
  return {id,          name,       C::kGates,       C::kStates,       C::kSaved,
          C::kOwnGate, C::kReadsH, C::kSavesOutput, kBoundedGates<C>, kPhaseCount<C>,
          C::kPhases,  C::kRange};
}

inline constexpr CellInfo kCells[] = {
#define RNNFAST_CELL_INFO(type, name) info_of<type<float>>(CellId::k##type, name),
    RNNFAST_CELLS(RNNFAST_CELL_INFO)
#undef RNNFAST_CELL_INFO
};

constexpr const CellInfo& cell_info(CellId id) { return kCells[static_cast<int>(id)]; }

// The id of a cell's type; a type that is not in the list has none.
template <template <class> class Cell>
struct IdOf;
#define RNNFAST_CELL_ID_OF(type, name)               \
  template <>                                        \
  struct IdOf<type> {                                \
    static constexpr CellId value = CellId::k##type; \
  };
RNNFAST_CELLS(RNNFAST_CELL_ID_OF)
#undef RNNFAST_CELL_ID_OF
template <template <class> class Cell>
inline constexpr CellId kIdOf = IdOf<Cell>::value;

// Throws std::invalid_argument, naming the cells there are.
inline const CellInfo& find_cell(std::string_view name) {
  std::string known;
  for (const CellInfo& cell : kCells) {
    if (cell.name == name) return cell;
    known += (known.empty() ? "" : ", ") + std::string(cell.name);
  }
  throw std::invalid_argument("unknown cell '" + std::string(name) + "'; the cells are " + known);
}

// A cell passed as a value: `using C = typename decltype(tag)::template Cell<float>;`
template <template <class> class C>
struct CellTag {
  template <class V>
  using Cell = C<V>;
};

// f(CellTag<the cell of that id>), whose result it returns.
template <class F>
decltype(auto) dispatch(CellId id, F&& f) {
  switch (id) {
#define RNNFAST_CELL_CASE(type, name) \
  case CellId::k##type:               \
    return f(CellTag<type>{});
    RNNFAST_CELLS(RNNFAST_CELL_CASE)
#undef RNNFAST_CELL_CASE
  }
  throw std::invalid_argument("not a CellId: " + std::to_string(static_cast<int>(id)));
}

template <class F>
decltype(auto) dispatch(std::string_view name, F&& f) {
  return dispatch(find_cell(name).id, f);
}

}  // namespace rnnfast
