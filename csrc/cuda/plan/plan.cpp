#include "cuda/plan/plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <tuple>

namespace rnnfast::cuda {
namespace {

constexpr int kLeastSm = 80;         // mma.m16n8k16 and cp.async
constexpr int kLeastClusterSm = 90;  // thread-block clusters
constexpr int kMostRegisters = 255;  // of a thread

int64_t batch_tiles_of(const PlanProblem& p) {
  return detail::ceil_div(std::max<int64_t>(p.B, 1), kColumns);
}

std::string microseconds(double ns) {
  const long tenths = std::lround(ns / 100);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " us";
}

std::string numbered(int64_t n, const char* what) { return std::to_string(n) + " " + what; }

// What the kernel of a plan is, in words.
std::string describe_kernel(const PlanProblem& p, const CudaPlan& plan) {
  const std::string head = std::string(name_of(plan.strategy)) + ": " +
                           std::string(name_of(plan.math)) + ", shape " +
                           std::to_string(plan.shape);
  const std::string threads = " of " + numbered(kThreads, "threads, ");
  const char* shared = "bytes of shared memory; ";
  if (plan.strategy == Strategy::kResident) {
    const Shape shape = shapes(p.pass, p.cell, plan.math).at[plan.shape];
    return head + " (" + numbered(shape.groups, "groups a warp, ") +
           numbered(shape.held_slabs, "slabs in registers), ") +
           numbered(batch_tiles_of(p) * p.directions, "blocks") + threads +
           numbered(shared_bytes(p.pass, p.cell, plan.math, shape, p.H), shared);
  }
  const TeamKind kind = plan.strategy == Strategy::kGrid ? TeamKind::kGrid : TeamKind::kCluster;
  const TeamShape shape = team_shapes(p.pass, p.cell).at[plan.shape];
  return head + " (" + numbered(shape.tiles, "tiles of 16 rows a block, ") +
         numbered(shape.held_slabs, "slabs in registers), ") +
         numbered(int64_t(plan.teams) * p.directions, "teams of ") +
         numbered(plan.blocks, "blocks") + threads + numbered(plan.tiles, "batch tiles a team, ") +
         numbered(team_shared_bytes(kind, p.pass, p.cell, plan.math, shape, p.H, plan.blocks,
                                    plan.tiles),
                  shared);
}

CudaPlan described(const PlanProblem& p, CudaPlan plan) {
  plan.text = plan.strategy == Strategy::kStepwise ? "stepwise (" + plan.why + "); "
                                                   : describe_kernel(p, plan);
  plan.text += "the model expects " + microseconds(plan.step_ns) + " a step" + plan.refused;
  return plan;
}

void expect(CudaPlan& plan, const StepCost& step) {
  plan.step_ns = step.expected(), plan.chain_ns = step.total;
}

bool is_faster(const CudaPlan& a, const CudaPlan& b) {
  return std::tie(a.step_ns, a.chain_ns) < std::tie(b.step_ns, b.chain_ns);
}

CudaPlan stepwise(const PlanProblem& p, const Device& device, const std::string& why) {
  CudaPlan plan;
  plan.math = math_of(p);
  expect(plan, stepwise_step(p, device, rates_of(device)));
  plan.why = why;
  return described(p, plan);
}

// Better of the two; one without a step_ns is none.
void take_better(CudaPlan& best, const CudaPlan& other) {
  if (best.step_ns == 0 || is_faster(other, best)) best = other;
}

// The fastest shape of one block, or the one that is asked for; step_ns 0 where there is none.
CudaPlan best_resident(const PlanProblem& p, const Device& device, int asked) {
  const Rates rates = rates_of(device);
  CudaPlan best;
  const Math math = math_of(p);
  const ShapeList list = shapes(p.pass, p.cell, math);
  for (int i = 0; i < list.size; ++i) {
    if (asked >= 0 && i != asked) continue;
    if (!fits(p.pass, p.cell, math, list.at[i], p.H, device.shared_limit)) continue;
    CudaPlan plan;
    plan.strategy = Strategy::kResident, plan.math = math, plan.shape = i;
    plan.teams = int(batch_tiles_of(p));
    expect(plan, solo_step(p, math, list.at[i], device, rates, kEstimated));
    take_better(best, plan);
  }
  return best;
}

// Whether a team of so many blocks is worth a thought: of clusters, sizes that are known to run
// everywhere where any do.
bool may_be_chosen(TeamKind kind, int blocks, const Device& device) {
  if (kind == TeamKind::kGrid) return blocks > 1 && blocks <= device.sm_count;
  return blocks > 1 && blocks <= kMostClusterBlocks && (blocks & (blocks - 1)) == 0;
}

// Not every multiprocessor finds a place in a cluster: of an H100's 132, clusters of 8 run on 120.
Device as_seen_by(TeamKind kind, Device device) {
  if (kind == TeamKind::kCluster) device.sm_count = device.sm_count * 10 / 11;
  return device;
}

// f(teams) for the numbers of teams that are worth a thought: all of a grid's blocks must be on the
// device at once, while clusters may come one after the other.
template <class F>
void each_number_of_teams(TeamKind kind, const PlanProblem& p, const Device& device, int blocks,
                          int asked, const F& f) {
  const int64_t all = batch_tiles_of(p);
  if (kind == TeamKind::kCluster) return f(int(all));
  const int64_t room = device.sm_count / (int64_t(blocks) * p.directions);
  if (asked > 0) {
    if (asked <= room) f(asked);
    return;
  }
  for (int64_t teams = 1; teams <= std::min(room, all); ++teams) {
    const int64_t tiles = detail::ceil_div(all, teams);
    if (teams == 1 || tiles < detail::ceil_div(all, teams - 1)) f(int(teams));
  }
}

// The teams of this kind that fit, as far as they are not asked for.
std::vector<CudaPlan> possible_teams(TeamKind kind, const PlanProblem& p, const Device& device,
                                     const Forced& forced) {
  const Rates rates = rates_of(device);
  const Math math = math_of(p);
  const TeamShapeList list = team_shapes(p.pass, p.cell);
  std::vector<CudaPlan> found;
  const int step = unit_step(p.pass, p.cell);
  for (int i = 0; i < list.size; ++i) {
    if (forced.shape >= 0 && i != forced.shape) continue;
    for (int64_t units = step; units <= most_units(p.pass, p.cell, list.at[i]); units += step) {
      const int blocks = int(detail::ceil_div(p.H, units));
      if (team_units(p.pass, p.cell, p.H, blocks) != units) continue;
      if (forced.blocks > 0 ? blocks != team_blocks(p.pass, p.cell, p.H, forced.blocks)
                            : !may_be_chosen(kind, blocks, device)) {
        continue;
      }
      each_number_of_teams(kind, p, device, blocks, forced.teams, [&](int teams) {
        const int tiles =
            kind == TeamKind::kCluster ? 1 : int(detail::ceil_div(batch_tiles_of(p), teams));
        if (!team_fits({kind, p.pass, p.cell, math, list.at[i]}, p.H, blocks, tiles,
                       device.shared_limit)) {
          return;
        }
        const Team team{kind, blocks, tiles, list.at[i].held_slabs, false};
        CudaPlan plan;
        plan.strategy = kind == TeamKind::kGrid ? Strategy::kGrid : Strategy::kCluster;
        plan.math = math, plan.shape = i;
        plan.blocks = blocks, plan.teams = teams, plan.tiles = tiles;
        expect(plan, team_step(p, math, team, as_seen_by(kind, device), rates, kEstimated));
        found.push_back(plan);
      });
    }
  }
  return found;
}

// Whether the driver has room for a team: for one cluster, or for all blocks of a grid.
bool has_room(TeamKind kind, const PlanProblem& p, const CudaPlan& plan, const Room& room) {
  const TeamQuery query{kind, p, plan.math, plan.shape, plan.blocks, plan.teams, plan.tiles};
  const int64_t needed =
      kind == TeamKind::kCluster ? plan.blocks : int64_t(plan.blocks) * plan.teams * p.directions;
  return room(query) >= needed;
}

// The fastest of them; step_ns 0 where there is none. The driver is asked from the fastest one on
// until it has room, and `refused` says how many it had none for.
CudaPlan best_team(TeamKind kind, const PlanProblem& p, const Device& device, const Forced& forced,
                   const Room& room) {
  std::vector<CudaPlan> teams = possible_teams(kind, p, device, forced);
  std::stable_sort(teams.begin(), teams.end(), is_faster);
  int refused = 0;
  CudaPlan best;
  for (const CudaPlan& plan : teams) {
    if (!room || has_room(kind, p, plan, room)) {
      best = plan;
      break;
    }
    ++refused;
  }
  if (refused > 0) {
    const char* of = kind == TeamKind::kGrid ? " grid" : " cluster";
    best.refused = "; the driver has no room for " + std::to_string(refused) + of +
                   (refused > 1 ? " teams" : " team");
  }
  return best;
}

// Why no kernel that keeps the weights can take the problem there, whatever its size.
std::string why_never(const PlanProblem& p, const Device& device, bool any_shape) {
  if (p.dtype == DType::kFloat64) return "no resident kernel for float64";
  if (!any_shape) return "no resident kernel for " + std::string(cell_info(p.cell).name);
  if (device.sm < kLeastSm) return "resident kernels need compute capability 8.0";
  if (device.registers < int64_t(kThreads) * kMostRegisters) return "too few registers for a block";
  return "";
}

std::string why_never_team(TeamKind kind, const PlanProblem& p, const Device& device) {
  const std::string never = why_never(p, device, team_shapes(p.pass, p.cell).size > 0);
  if (!never.empty()) return never;
  if (math_of(p) == Math::kFp32) return "no team computes in strict fp32";
  const bool no_clusters = kind == TeamKind::kCluster && device.sm < kLeastClusterSm;
  return no_clusters ? "clusters of blocks need compute capability 9.0" : "";
}

std::string size_and_math(const PlanProblem& p) {
  return "H = " + std::to_string(p.H) + " in " + std::string(name_of(math_of(p)));
}

CudaPlan as_forced(const PlanProblem& p, const Device& device, const Forced& forced,
                   std::string_view text, const Room& room) {
  if (forced.strategy == Strategy::kStepwise) return stepwise(p, device, "as RNNFAST_PLAN asks");
  const bool solo = forced.strategy == Strategy::kResident;
  const TeamKind kind = forced.strategy == Strategy::kGrid ? TeamKind::kGrid : TeamKind::kCluster;
  std::string why = solo ? why_not_resident(p, device) : why_never_team(kind, p, device);
  CudaPlan plan;
  if (why.empty()) {
    plan = solo ? best_resident(p, device, forced.shape) : best_team(kind, p, device, forced, room);
    if (plan.step_ns == 0) why = size_and_math(p) + " does not fit that" + plan.refused;
  }
  if (!why.empty()) {
    throw std::invalid_argument("RNNFAST_PLAN asks for " + std::string(text) + ": " + why);
  }
  return described(p, plan);
}

}  // namespace

std::string_view name_of(Strategy strategy) {
  switch (strategy) {
    case Strategy::kStepwise:
      return "stepwise";
    case Strategy::kResident:
      return "resident";
    case Strategy::kCluster:
      return "cluster";
    case Strategy::kGrid:
      return "grid";
  }
  throw std::invalid_argument("not a Strategy");
}

double resident_cycles(const PlanProblem& p, Math math, Shape shape, const Device& device) {
  const StepCost step = solo_step(p, math, shape, device, rates_of(device), kEstimated);
  return ((step.total - step.launch) / step.waves - step.load) * device.clock_ghz;
}

std::string why_not_resident(const PlanProblem& p, const Device& device) {
  const Math math = math_of(p);
  const std::string never = why_never(p, device, shapes(p.pass, p.cell, math).size > 0);
  if (!never.empty()) return never;
  if (first_fit(p.pass, p.cell, math, p.H, device.shared_limit) < 0) {
    return size_and_math(p) + " does not fit one block";
  }
  return "";
}

std::string why_not_team(TeamKind kind, const PlanProblem& p, const Device& device) {
  const std::string never = why_never_team(kind, p, device);
  if (!never.empty() || !possible_teams(kind, p, device, Forced{}).empty()) return never;
  if (p.H <= unit_step(p.pass, p.cell)) return "one block has all units of " + size_and_math(p);
  return size_and_math(p) + " does not fit a " + (kind == TeamKind::kGrid ? "grid" : "cluster") +
         " of blocks";
}

CudaPlan plan_cuda(const PlanProblem& p, const Device& device, std::string_view text,
                   const Room& room) {
  const Forced forced = parse_forced(text, p.pass);
  if (forced.any) return as_forced(p, device, forced, text, room);
  const std::string not_solo = why_not_resident(p, device);
  CudaPlan best;
  if (not_solo.empty()) best = best_resident(p, device, -1);
  std::string not_teams, refused;
  for (const TeamKind kind : {TeamKind::kCluster, TeamKind::kGrid}) {
    not_teams = why_not_team(kind, p, device);
    if (!not_teams.empty()) continue;
    const CudaPlan team = best_team(kind, p, device, forced, room);
    refused += team.refused;
    if (team.step_ns > 0) take_better(best, team);
  }
  if (best.step_ns == 0) {
    const std::string why =
        not_teams == not_solo || not_teams.empty() ? not_solo : not_solo + "; " + not_teams;
    return stepwise(p, device, why + refused);
  }
  best.refused = refused;
  const std::string slower =
      "a resident kernel is expected to take " + microseconds(best.step_ns) + refused;
  const CudaPlan steps = stepwise(p, device, slower);
  return is_faster(steps, best) ? steps : described(p, best);
}

}  // namespace rnnfast::cuda
