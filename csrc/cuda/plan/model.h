// What a step costs, by arithmetic on documented rates and a few assumed ones: nothing here was
// measured on a GPU by this project. Plain C++, for the plan, Python (`_C.cuda_model`) and the
// tests. docs/latency.md explains the terms.
//
// How to call it:
//
//   const Rates rates = rates_of(device);           // or with_rates(…): some of them replaced
//   StepCost a = solo_step(problem, math, shape, device, rates);
//     // … , device, rates, kEstimated) counts the time that issuing instructions takes, too
//   StepCost b = stepwise_step(problem, device, rates);
//   const Team team{TeamKind::kGrid, /*blocks=*/32, /*tiles=*/2, /*held_slabs=*/4};
//   StepCost c = team_step(problem, math, team, device, rates);
//   a.expected() < b.expected() …                   // ns of one step, what the plan compares
//
// Every function takes what it needs as numbers and knows nothing of what is compiled, so it may be
// asked about a team that no kernel exists for. Whether the weights fit, and whether all blocks are
// on the device at once, is the caller's business.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "cells/list.h"
#include "cuda/solo/shapes.h"
#include "cuda/team/shapes.h"
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

// How a resident kernel multiplies operands of that dtype (fp64 has none: kFp32).
Math math_of(const PlanProblem& problem);

// --- rates ---------------------------------------------------------------------------------------

// Clocks are those of an SM. rate_list() says of each, for a device, who published it, or that it
// is ASSUMED; what follows is the meaning.
struct Rates {
  double mma_cycles;                 // of an SM, for one mma of 16x8x16 (16 bit) or 16x8x8 (tf32)
  double ffma_per_clock;             // of an SM
  double special_per_clock;          // ex2, rcp and the like of an SM
  double issue_per_clock;            // instructions of an SM: one for each of 4 schedulers
  double shared_bytes_per_clock;     // of an SM
  double l2_bytes_per_clock;         // an SM reading L2
  double l2_device_bytes_per_clock;  // all SMs together reading L2
  double l2_latency_cycles;          // of one such read
  double l2_line_cycles;             // between two answers of L2 from one line: who polls, waits
  double l2_bytes;                   // that it holds
  double cluster_bytes_per_clock;    // an SM writing into the shared memory of its cluster's others
  double dram_bytes_per_ns;          // of the device
  double dram_latency_cycles;        // of a read that L2 has not
  double pointwise_bytes_per_clock;  // an SM in the stepwise pointwise kernels
  double product_efficiency;         // share of the peak that a small product by cuBLAS reaches
  double step_latency_cycles;        // of a phase: operands' way through shared memory, first mma,
                                     // gate math of the last warp
  double block_barrier_cycles;       // __syncthreads of 8 warps that arrive together
  double cluster_exchange_ns;        // from the first st.async to the last peer's mbarrier
  double grid_barrier_ns;            // red.release until the last of 64 blocks' ld.acquire has seen
                                     // it, without barriers of a block
  double gpc_sms;                    // SMs of a GPC on average: a cluster lies in one
  double launch_ns;                  // of a kernel, until it does something
  double queued_launch_ns;           // of one after the other
  double product_host_ns;            // what the host takes for a product by ATen and cuBLAS
};

struct RateInfo {
  std::string_view name;
  double Rates::* value;
  std::string_view unit;
  std::string_view published;  // by whom; empty: ASSUMED
};

// Every member of Rates, and where its value for this device is from.
std::vector<RateInfo> rate_list(const Device& device);

// The rates of a device of that compute capability (its maker's largest part where that matters).
Rates rates_of(const Device& device);

// `rates` with the named ones replaced. Throws std::invalid_argument for a name that is none, with
// a list of them, and for a value that is not positive and finite.
Rates with_rates(Rates rates, const std::map<std::string, double>& replaced);

// --- a step --------------------------------------------------------------------------------------

// Bounds that no kernel beats, ns a step of the whole problem on the whole device.
struct Limits {
  double bytes = 0;     // sequences' data once: gates, what is saved, y; from L2 if it holds all
  double flops = 0;     // the recurrent product at the rate of mma.sync (or FFMA)
  double specials = 0;  // special functions of the gate math
};

// A step by its parts, ns, of all tiles of a team; `waves` of such blocks come one after the other.
// Stepwise has only `product`, `pointwise` and `launch`.
struct StepCost {
  double mma = 0;                  // products: tensor cores, or FFMA
  double weights_from_shared = 0;  // what of W is not in registers
  double operands = 0;             // h, or gradients of the gates: shared memory, or L2 (grid)
  double partials = 0;             // sums of warps that share rows, through shared memory
  double specials = 0;             // special functions
  double issue = 0;                // instructions, at one a clock of each scheduler
  double latency = 0;              // what a chain of dependent instructions waits for
  double barrier = 0;              // block barriers
  double exchange = 0;             // between blocks, what no other tile's work hides
  double hidden = 0;               // between blocks, what it hides; not in total
  double fetch = 0;                // for gates and resets, asked for kFetchedAhead steps before
  double product = 0;              // stepwise: by cuBLAS
  double pointwise = 0;            // stepwise
  double load = 0;                 // reading the weights once, spread over the steps
  double launch = 0;               // likewise
  double products = 0;             // mma (FFMA) instructions of a warp for one tile: a count
  double waves = 1;
  double total = 0;   // the chain of all these, ns
  double memory = 0;  // a block's share of the sequences' data; beside the chain, not in total
  Limits limits;

  // Where memory is the bottleneck it is that, else total: what the plan compares.
  double expected() const;
};

// `instructions`: of a warp in a step (of one tile), as counted in the kernel's machine code;
// kEstimated: by model_counts.h; 0: as if they cost nothing.
inline constexpr double kEstimated = -1;

// By the resident kernel of that shape.
StepCost solo_step(const PlanProblem& problem, Math math, Shape shape, const Device& device,
                   const Rates& rates, double instructions = 0);

// By a product and its pointwise kernels for each step.
StepCost stepwise_step(const PlanProblem& problem, const Device& device, const Rates& rates);

// A team of `blocks` blocks (team/shapes.h) with `tiles` batch tiles, which a step takes one after
// the other, so that the exchange of one hides behind the work of the others. `held_slabs`: of each
// row tile of a warp, in registers.
//
// Gathered (all compiled kernels are): a block has all columns of its units' rows, split over its
// warps; partial sums meet in shared memory. What travels is h, or the gradients of all gates.
// Scattered, backward only: a block has all H rows of its own gates' columns; what travels is fp32
// sums, to be added up by the owner of the rows.
struct Team {
  TeamKind kind = TeamKind::kGrid;
  int blocks = 2;
  int tiles = 1;
  int held_slabs = 0;
  bool scattered = false;
};

// Blocks of clusters of that size that the device has room for at once, by gpc_sms; the driver's
// answer (resident_blocks of device.h) replaces it on a real device.
int64_t cluster_blocks_at_once(int blocks, const Device& device, const Rates& rates);

// Throws std::invalid_argument for a team that is none (a size below 1, a scattered forward).
StepCost team_step(const PlanProblem& problem, Math math, const Team& team, const Device& device,
                   const Rates& rates, double instructions = 0);

}  // namespace rnnfast::cuda
