// What every kernel is given: one direction of one layer over a batch of sequences. Plain C++.
#pragma once

#include <cstdint>
#include <string>

#include "cells/list.h"

namespace rnnfast {

// How tensors are stored. States and sums are fp32 at least, fp64 for kFloat64.
enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };

struct Problem {
  CellId cell = CellId::kRnnTanh;
  DType dtype = DType::kFloat32;

  int64_t T = 0;  // steps
  int64_t B = 0;  // batch
  int64_t I = 0;  // input size; 0 where the gates come projected already
  int64_t H = 0;  // hidden size
  int64_t P = 0;  // width of h, hence of the output: the projection's, else H

  bool reverse = false;
  bool has_lengths = false;
  bool has_resets = false;
  bool all_states =
      false;              // the states that are not the output (LSTM's c) are wanted for every step
  bool training = false;  // a backward will follow
  int num_threads = 1;

  // Empty if the problem is sound, else what is wrong with it. The sizes below are meant for a
  // sound problem.
  std::string validate() const;

  int64_t gate_width() const { return info().gates * H; }  // of gx and gh
  bool has_cell_state() const { return info().states > 1; }
  bool keeps_cell_states() const { return has_cell_state() && (training || all_states); }

  int64_t gate_elements() const { return T * B * gate_width(); }
  int64_t output_elements() const { return T * B * P; }
  int64_t cell_state_elements() const { return keeps_cell_states() ? T * B * H : 0; }
  int64_t saved_elements() const { return training ? info().saved * T * B * H : 0; }

  const CellInfo& info() const { return cell_info(cell); }
};

}  // namespace rnnfast
