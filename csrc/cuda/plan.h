// Which kernel computes a scan on a GPU, from numbers only, so that a choice can be tested for any
// device.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cells/list.h"
#include "cuda/shapes.h"
#include "scan/problem.h"

namespace rnnfast::cuda {

// What a device is like.
struct Device {
  int sm = 0;  // 10 · major + minor of its compute capability
  int sm_count = 1;
  int64_t shared_limit = 48 * 1024;  // of a block, opt-in
  int64_t registers = 65536;         // of a block
  double clock_ghz = 1;
};

// "A100", "H100", "RTX 4090", "B200", "T4", by their makers' data sheets. Throws
// std::invalid_argument for another name.
Device device_by_name(std::string_view name);

// One pass over a layer; both directions if it has two.
struct PlanProblem {
  Pass pass = Pass::kForward;
  CellId cell = CellId::kRnnTanh;
  DType dtype = DType::kFloat32;
  bool tf32 = false;  // whether products of kFloat32 may be in tf32
  int64_t T = 1, B = 1, H = 1, P = 1;
  int directions = 1;
};

// Resident: one launch for all steps by the kernel of this math and shape (shapes.h). Stepwise: a
// product and its pointwise kernels for each step.
struct CudaPlan {
  bool resident = false;
  Math math = Math::kFp32;
  int shape = 0;
  double step_ns = 0;  // what the model expects of a step, the launch spread over the steps
  std::string why;     // stepwise: why not resident
  std::string text;    // all of it, for `explain`
};

// The strategy and shape that the model expects to be fastest. `forced` is empty or as RNNFAST_PLAN
// has it: "stepwise", "resident", or "resident:shape=N" with an index into shapes(pass, …);
// "forward=N" and "backward=N" say it of one pass and leave the other free. Throws
// std::invalid_argument where it is none of these, or where what it asks for can't be.
CudaPlan plan_cuda(const PlanProblem& problem, const Device& device, std::string_view forced = "");

// Why no resident kernel can take the problem there, or empty.
std::string why_not_resident(const PlanProblem& problem, const Device& device);

// Clock cycles of a step of a block, by the model of the resident kernels.
double resident_cycles(const PlanProblem& problem, Math math, Shape shape, const Device& device);

std::string_view name_of(Math math);

}  // namespace rnnfast::cuda
