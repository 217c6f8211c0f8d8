// The one list of the cells. A new cell is a header and a line here.
//
// What a one-phase cell offers to every kernel, for one hidden unit of one sequence, G = kGates:
//
//   forward(gx[G], gh[G], s[kStates], s_new[kStates], saved[kSaved])
//   backward(ds_new[kStates], saved[kSaved], s[kStates], dgx[G], dgh[G], ds[kStates])
//
// gx = W_ih·x + b_ih and gh = W_hh·h + b_hh; s[0] is h, s_new[0] the output; ds is the direct part
// of the gradient of s: the part through gh is W_hhᵀ·dgh, outside. kPhases == 2: a second product
// inside the step, see gru.h. kProjected: h' = W_hr·s_new[0], see lstm.h.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

// X(type, name in Python)
#define RNNFAST_CELLS(X)   \
  X(RnnTanh, "rnn_tanh")   \
  X(RnnRelu, "rnn_relu")   \
  X(Lstm, "lstm")          \
  X(LstmProj, "lstm_proj") \
  X(Gru, "gru")            \
  X(GruResetBefore, "gru_reset_before")

namespace rnnfast {

enum class CellId : int {
#define RNNFAST_CELL_ID(type, name) k##type,
  RNNFAST_CELLS(RNNFAST_CELL_ID)
#undef RNNFAST_CELL_ID
};

// A cell's constants where its type is only known at run time.
struct CellInfo {
  CellId id;
  std::string_view name;
  int gates, states, saved, phases;
  bool projected;
};

inline constexpr CellInfo kCells[] = {
#define RNNFAST_CELL_INFO(type, name)            \
  {CellId::k##type,        name,                 \
   type<float>::kGates,    type<float>::kStates, \
   type<float>::kSaved,    type<float>::kPhases, \
   type<float>::kProjected},
    RNNFAST_CELLS(RNNFAST_CELL_INFO)
#undef RNNFAST_CELL_INFO
};

constexpr const CellInfo& cell_info(CellId id) { return kCells[static_cast<int>(id)]; }

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
