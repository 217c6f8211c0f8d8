// Which kernel computes a scan on a GPU, from numbers only, so that a choice can be tested for any
// device.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "cuda/plan/model.h"

namespace rnnfast::cuda {

// Resident: one launch for all steps, by blocks that each have all hidden units (solo/shapes.h), or
// by teams of blocks that split them (team/shapes.h), in a cluster or over the grid. Stepwise: a
// product and its pointwise kernels for each step.
enum class Strategy { kStepwise, kResident, kCluster, kGrid };

// "stepwise", "resident", "cluster", "grid".
std::string_view name_of(Strategy strategy);

struct CudaPlan {
  Strategy strategy = Strategy::kStepwise;
  Math math = Math::kFp32;
  int shape = 0;        // index into shapes(…), or of a team into team_shapes(…)
  int blocks = 1;       // of a team
  int teams = 1;        // of a direction
  int tiles = 1;        // batch tiles of a team
  double step_ns = 0;   // what the model expects of a step, the launch spread over the steps
  double chain_ns = 0;  // the same but for memory: tells plans apart that it bounds alike
  std::string refused;  // teams that the driver has no room for, in words
  std::string why;      // stepwise: why not resident
  std::string text;     // all of it, for `explain`
};

// What RNNFAST_PLAN asks of a pass: nothing, a strategy, and of it some numbers; -1: any.
struct Forced {
  bool any = false;
  Strategy strategy = Strategy::kStepwise;
  int shape = -1, blocks = -1, teams = -1;
};

// A team kernel that a plan is about to choose.
struct TeamQuery {
  TeamKind kind = TeamKind::kGrid;
  PlanProblem problem;
  Math math = Math::kBf16;
  int shape = 0, blocks = 1, teams = 1, tiles = 1;
};

// How many of its blocks the device has at once, by its driver.
using Room = std::function<int64_t(const TeamQuery&)>;

// "", "stepwise", "resident", "cluster" or "grid", the last three with ":key=N,key=N": shape, or
// forward or backward for the shape of one pass that leaves the other free; of teams also blocks,
// of grid teams also teams. Throws std::invalid_argument where it is none of these.
Forced parse_forced(std::string_view text, Pass pass);

// The strategy and shape that the model expects to be fastest, of those that the driver has room
// for where `room` asks it; `forced` as RNNFAST_PLAN has it. Throws std::invalid_argument where
// that is malformed or asks for what can't be.
CudaPlan plan_cuda(const PlanProblem& problem, const Device& device, std::string_view forced = "",
                   const Room& room = {});

// Why no kernel of one block can take the problem there, or empty; and no team's.
std::string why_not_resident(const PlanProblem& problem, const Device& device);
std::string why_not_team(TeamKind kind, const PlanProblem& problem, const Device& device);

// Clock cycles of a step of a block, by the model of the resident kernels (model.h), without launch
// and loading.
double resident_cycles(const PlanProblem& problem, Math math, Shape shape, const Device& device);

}  // namespace rnnfast::cuda
