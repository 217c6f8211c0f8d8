// A scan as the op is given it, and what its parts return.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "cells/list.h"
#include "ops/tensors.h"

namespace rnnfast::ops {

// The weights of a scan by name; empty where it has none of this name.
struct Weights {
  Optional w_ih, w_hh, b_ih, b_hh, w_hr;
};

// Where a scan is computed.
struct Place {
  const char* name;     // as errors call it
  const char* backend;  // of Python, whose kernels these are
  bool (*has)(const Tensor& tensor);
  bool looks;  // at the values of lengths and tokens, which are not waited for on a GPU
};

// Checked: the kernels may read every tensor by the sizes here.
struct Scan {
  const CellInfo& cell;
  const Place& place;
  std::string kind;                            // dense, gates, tokens
  ScalarType storage = ScalarType::Undefined;  // of states, weights and outputs
  int64_t T = 0, B = 0, H = 0, P = 0, I = 0;
  Tensor input{};  // [T, B, I], [T, B, G·H] or, tokens, int64 [T, B]
  Tensor h0{};     // [B, P]
  Optional c0{};   // [B, H]
  Weights weights{};
  Optional lengths{}, resets{};  // int64 [B]; bool [T, B]; both contiguous
  bool reverse = false, all_states = false;
  bool saves = false;  // what backward needs of the kernels is returned

  ScalarType wide() const { return ops::wide(storage); }
  int64_t gate_width() const { return cell.gates * H; }
};

// As the schema has them. Throws std::runtime_error, in words, for what isn't served or doesn't
// fit.
Scan checked(const Place& place, const std::string& cell, const std::string& kind,
             const Tensor& input, const std::vector<Tensor>& states,
             const std::vector<Tensor>& weights, const Optional& lengths, const Optional& resets,
             bool reverse, bool all_states, bool training, int64_t checkpoint_every,
             const std::string& backend);

// x·W_ihᵀ + b_ih [T, B, G·H] in the wide dtype, in memory of its own.
Tensor projected(const Scan& scan);

using Outputs = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

// (y, final, trace, saved).
Outputs forward(const Scan& scan);

// Throws where a tensor of a scan is none of this dtype and shape.
void check_given(const Scan& scan, const char* name, const Tensor& tensor, ScalarType dtype,
                 const Shape& shape);

// What backward is given beside the scan: gradients of forward's outputs, and these.
struct Cotangents {
  Optional dy;
  std::vector<Tensor> dfinal, dtrace;
  Tensor y;
  std::vector<Tensor> trace, saved;
  double grad_clip_time;
};

// Which gradients are wanted; those of tokens are none.
struct Needs {
  bool input, states, weights;
};

// (dinput, dstates, dweights); [0] or empty where they are not wanted.
using Gradients = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;

// By the host kernels.
Gradients backward(const Scan& scan, const Cotangents& of, const Needs& needs);

}  // namespace rnnfast::ops
