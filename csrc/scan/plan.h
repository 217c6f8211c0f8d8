// Which strategy fits a scan, from numbers only, so that a choice can be tested for any machine.
#pragma once

#include <cstdint>
#include <string>

#include "cells/list.h"

namespace rnnfast {

// What the host is like.
struct Host {
  int threads = 1;
  int vector_bytes = 16;
  int64_t l2_bytes = int64_t(1) << 20;  // of one core
};

// How a scan runs on the host. rows × units threads: each row part owns its sequences for all steps
// and never waits (resident); within one, units share the hidden units and meet at every step
// (stepwise).
struct HostPlan {
  int rows = 1, units = 1;
  double step_ns = 0;  // what the model expects of a step

  bool resident() const { return units == 1; }
  std::string describe() const;
};

// What the cost model looks at: of a step's products the weights, of its pointwise part the gates,
// and how often threads that share the hidden units meet.
struct StepCost {
  double weights = 0;
  int gates = 1, meetings = 1;
};

// Bytes of a number as it is computed, and of a packed weight; of pairs two weights are one number.
struct Widths {
  int computed = 4, packed = 4;
};

// The rows × units of at most host.threads that the cost model expects to be fastest.
HostPlan plan_host(const StepCost& step, int64_t B, int64_t H, Widths widths, const Host& host);
HostPlan plan_host(const CellInfo& cell, int64_t B, int64_t H, int64_t P, Widths widths,
                   const Host& host);

// Nanoseconds of so many multiply-adds of numbers of `width` bytes on one thread, in order of magnitude.
double product_ns(double multiply_adds, int width, int vector_bytes);

}  // namespace rnnfast
