#include "cuda/plan/model.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "cuda/device/layout.h"
#include "cuda/plan/model_counts.h"

namespace rnnfast::cuda {
namespace {

using detail::ceil_div;

constexpr int kSchedulers = 4;       // of an SM; warps in excess of a multiple wait
constexpr int kMmaOfASlab = 2;       // 16 rows × 64 bytes of columns
constexpr double kRows = 16;         // of a tile
constexpr double kNever = 1e9;       // waves of a cluster that no GPC has room for
constexpr double kPartialBytes = 4;  // fp32
constexpr double kL2Share = 0.5;     // of L2, that a scan's own data may have: a guess
constexpr int kBarrierBlocks = 64;   // that the program of the rates lets meet at grid_barrier_ns

int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

double at_least_one(int64_t n) { return double(std::max<int64_t>(n, 1)); }

int64_t batch_tiles(const PlanProblem& p) { return ceil_div(std::max<int64_t>(p.B, 1), kColumns); }

// Instructions of the special function unit for a unit of a step (real.h).
double specials_of(const PlanProblem& p) {
  constexpr double kActivation = 2;  // an exponential and a reciprocal
  const CellInfo& cell = cell_info(p.cell);
  if (p.pass == Pass::kForward) {
    return kActivation * (cell.states == 2 ? 5 : p.cell == CellId::kRnnRelu ? 0 : cell.gates);
  }
  return cell.states == 2 ? kActivation : 0;
}

double weight_bytes(const PlanProblem& p) {
  return double(cell_info(p.cell).gates * p.H * p.P) * double(bytes_of(p.dtype));
}

// Values of a unit that an exchange, or both of a step, carry.
double exchanged(const PlanProblem& p) {
  return p.pass == Pass::kForward ? cell_info(p.cell).gate_phases() : cell_info(p.cell).gates;
}

// Bytes of a unit of a sequence in a step, as in training. Forward: gates, what is saved in their
// place, y, c. Backward: what was saved, D, dy, the state before.
double sequence_bytes(const PlanProblem& p) {
  const int slots = slots_of(p.cell);
  const double storage = double(bytes_of(p.dtype));
  const double state = cell_info(p.cell).states == 2 ? std::max(4.0, storage) : 0;
  if (p.pass == Pass::kForward)
    return storage * (cell_info(p.cell).saves_output ? 2 : 2 * slots + 1) + state;
  return storage * (2 * slots + 1 + (cell_info(p.cell).reads_h ? 1 : 0)) + state;
}

// Whether the data of all steps does. It is read once, in the order in which it was written: where L2
// can't hold all, it has lost each part before that is read.
bool stays_in_l2(const PlanProblem& p, const Rates& rates) {
  const double rows = double(p.T) * double(p.B) * p.directions;
  return rows * double(p.H) * sequence_bytes(p) <= kL2Share * rates.l2_bytes;
}

double multiply_adds_of_mma(Math math) {
  return kRows * kColumns * (operand_bytes(math) == 2 ? 16 : 8);
}

// Multiply-adds of an SM in a cycle at most.
double peak(const PlanProblem& p, const Rates& rates) {
  const Math math = math_of(p);
  return math == Math::kFp32 ? rates.ffma_per_clock : multiply_adds_of_mma(math) / rates.mma_cycles;
}

Limits limits_of(const PlanProblem& p, const Device& device, const Rates& rates) {
  const CellInfo& cell = cell_info(p.cell);
  const double all = at_least_one(p.B) * p.directions,
               device_clocks = device.sm_count * device.clock_ghz;
  Limits limits;
  const double bytes_per_ns = stays_in_l2(p, rates)
                                  ? rates.l2_device_bytes_per_clock * device.clock_ghz
                                  : rates.dram_bytes_per_ns;
  limits.bytes = all * double(p.H) * sequence_bytes(p) / bytes_per_ns;
  limits.flops = all * double(cell.gates * p.H * p.P) / (peak(p, rates) * device_clocks);
  limits.specials = all * double(p.H) * specials_of(p) / (rates.special_per_clock * device_clocks);
  return limits;
}

// A product of `tiles` row tiles × `slabs`, as its busiest scheduler does it, in cycles.
double multiply_cycles(Math math, double tiles, double slabs, const Rates& rates) {
  if (math == Math::kFp32) {
    return tiles * kRows * slabs * slab_values(math) * kColumns / rates.ffma_per_clock;
  }
  return tiles * slabs * kMmaOfASlab * rates.mma_cycles;
}

// Instructions of a warp for a slab of a tile.
double products_of_slab(Math math) { return math == Math::kFp32 ? 2 * 4 * kColumns : kMmaOfASlab; }

double full_schedulers(int64_t n) { return double(ceil_div(n, kSchedulers) * kSchedulers); }

double issue_cycles(double instructions, const Rates& rates) {
  return instructions * kWarps / rates.issue_per_clock;
}

// Of one of so many SMs that read L2 at once, bytes in a cycle.
double l2_rate(double at_once, const Rates& rates) {
  return std::min(rates.l2_bytes_per_clock, rates.l2_device_bytes_per_clock / at_once);
}

// The part of the matrix of the warp that has most: slabs of a tile, in registers and in shared
// memory.
struct WarpPart {
  double tiles = 0, held = 0, spilled = 0;
};

WarpPart warp_part(int64_t tiles, int64_t slabs, int64_t held) {
  const int64_t spilled = std::max<int64_t>(slabs - held, 0);
  return {double(tiles), double(slabs - spilled), double(spilled)};
}

// Reading a block's part of the matrix, in cycles: all warps' instructions and the ways of a
// thread's loads, one after the other, or what L2 delivers. A layer's weights come from DRAM: since
// they were used last, all of the model was.
double load_cycles(const LoadWay& way, const WarpPart& part, double bytes, double at_once,
                   const Rates& rates) {
  const double trips = std::ceil(part.spilled / way.slabs_ahead);  // of a tile
  const double slabs = part.tiles * (part.held + trips * way.slabs_ahead);
  const double held = way.held_at_once ? double(part.held > 0) : part.tiles * part.held;
  const double chain =
      issue_cycles(slabs * kSlabThreadBytes / way.bytes * way.instructions, rates) +
      (held + part.tiles * trips) * rates.dram_latency_cycles;
  return std::max(chain, rates.dram_latency_cycles + bytes / l2_rate(at_once, rates));
}

// What a step of so many cycles waits for gates and resets that were asked for kFetchedAhead of
// them before.
double fetch_cycles(const PlanProblem& p, double step, const Rates& rates) {
  const double latency =
      stays_in_l2(p, rates) ? rates.l2_latency_cycles : rates.dram_latency_cycles;
  return std::max(0.0, latency - kFetchedAhead * step);
}

// The work of an SM for one tile of a batch: cycles, without latency, barriers and exchange.
double busy(const StepCost& c, bool operands_in_shared) {
  const double shared = c.weights_from_shared + (operands_in_shared ? c.operands : 0);
  const double units = std::max({c.mma, shared, c.operands}) + c.partials + c.specials;
  return std::max(units, c.issue);
}

// From cycles of one tile to ns of `tiles`, and what all strategies share.
void finish(StepCost& c, double tiles, const PlanProblem& p, const Device& device,
            const Rates& rates) {
  const double ns = tiles / device.clock_ghz;
  for (double* part : {&c.mma, &c.weights_from_shared, &c.operands, &c.partials, &c.specials,
                       &c.issue, &c.latency, &c.barrier, &c.fetch, &c.memory}) {
    *part *= ns;
  }
  c.load = c.load / at_least_one(p.T) / device.clock_ghz;
  c.launch = rates.launch_ns / at_least_one(p.T);
  c.limits = limits_of(p, device, rates);
}

// A team's work on one batch tile: a block's share of the matrix.
struct Share {
  int64_t units = 0;      // of the block
  int64_t row_tiles = 0;  // of the block
  double slabs = 0;       // of a row tile, as the busiest scheduler sees them
  WarpPart warp;          // of the first warp
  double streamed = 0;    // slabs of a row tile and warp that are not in registers, all together
  double operands = 0;    // values of one sequence that the block reads
};

Share share_of(const PlanProblem& p, Math math, const Team& team) {
  Share share;
  share.units = team_units(p.pass, p.cell, p.H, team.blocks);
  if (team.scattered) {  // rows over warps, each with all of the block's own columns
    share.row_tiles = ceil_div(p.H, 16);
    const int64_t slabs = slabs_of(p.pass, p.cell, math, share.units);
    share.slabs = double(slabs);
    share.warp = warp_part(ceil_div(share.row_tiles, kWarps), slabs, team.held_slabs);
    share.streamed = double(share.row_tiles * std::max<int64_t>(slabs - team.held_slabs, 0));
    share.operands = double(std::min<int64_t>(kWarps, share.row_tiles) * slabs * slab_values(math));
    return share;
  }
  share.row_tiles = team_tiles(p.pass, p.cell, share.units);
  int64_t of_warp[kWarps] = {};
  for (int part = 0; part < matrix_parts(p.pass, p.cell); ++part) {
    const int64_t slabs = team_slabs(p.pass, p.cell, math, p.H, part);
    share.slabs += full_schedulers(slabs);
    for (int w = 0; w < kWarps; ++w)
      of_warp[w] += ceil_div(std::max<int64_t>(slabs - w, 0), kWarps);
  }
  for (const int64_t own : of_warp) {
    share.streamed += double(share.row_tiles * std::max<int64_t>(own - team.held_slabs, 0));
  }
  share.warp = warp_part(share.row_tiles, of_warp[0], team.held_slabs);
  share.operands = exchanged(p) * double(p.H);
  return share;
}

// The exchange of one tile, ns: what a block sends and receives, and the signal's way.
double exchange_ns(const PlanProblem& p, Math math, const Team& team, int64_t units,
                   const Device& device, const Rates& rates) {
  const int phases = cell_info(p.cell).gate_phases();
  // to one peer, or to memory; scattered: fp32 sums of that peer's units
  const double own = kColumns * double(units) *
                     (team.scattered ? kPartialBytes * phases : exchanged(p) * operand_bytes(math));
  const double to_all = own * (team.blocks - 1);
  if (team.kind == TeamKind::kCluster) {
    return phases * rates.cluster_exchange_ns +
           to_all / rates.cluster_bytes_per_clock / device.clock_ghz;
  }
  // the reads of a gathered exchange are `operands`; scattered sums are written and read here
  const double bytes = team.scattered ? 2 * to_all : own;
  const double requests = kLineRequests * (team.blocks - kBarrierBlocks);
  const double barrier = rates.grid_barrier_ns + requests * rates.l2_line_cycles / device.clock_ghz;
  return phases * std::max(barrier, 0.0) + bytes / rates.l2_bytes_per_clock / device.clock_ghz;
}

// Of a block in an exchange: around the sums; before the signal; of a grid, after the thread that
// polls.
int barriers_of(TeamKind kind) { return kind == TeamKind::kGrid ? 3 : 2; }

double team_waves(const Team& team, double blocks, const Device& device, const Rates& rates) {
  const int64_t room = team.kind == TeamKind::kCluster
                           ? cluster_blocks_at_once(team.blocks, device, rates)
                           : device.sm_count;
  return room > 0 ? std::ceil(blocks / double(room)) : kNever;
}

void check_team(const Team& team, Pass pass) {
  if (team.blocks < 1 || team.tiles < 1 || team.held_slabs < 0) {
    throw std::invalid_argument("no team: " + std::to_string(team.blocks) + " blocks, " +
                                std::to_string(team.tiles) + " tiles, " +
                                std::to_string(team.held_slabs) + " slabs in registers");
  }
  if (team.scattered && pass == Pass::kForward) {
    throw std::invalid_argument("only a backward pass can be scattered");
  }
}

}  // namespace

double StepCost::expected() const { return std::max({total, waves * memory, limits.bytes}); }

Math math_of(const PlanProblem& p) {
  switch (p.dtype) {
    case DType::kBFloat16:
      return Math::kBf16;
    case DType::kFloat16:
      return Math::kF16;
    default:
      return p.tf32 && p.dtype == DType::kFloat32 ? Math::kTf32 : Math::kFp32;
  }
}

StepCost solo_step(const PlanProblem& p, Math math, Shape shape, const Device& device,
                   const Rates& rates, double instructions) {
  const Group group = group_of(p.pass, p.cell);
  const int64_t groups = groups_of(p.pass, p.cell, p.H);
  const int64_t slabs = slabs_of(p.pass, p.cell, math, p.H);
  const double spilled = double(spilled_slabs(shape, slabs) * groups * group.tiles * kSlabShared);
  const double units = double(groups * group.units) * kColumns;
  const int phases = cell_info(p.cell).gate_phases();
  StepCost c;
  c.mma = multiply_cycles(math, full_schedulers(groups) * group.tiles, double(slabs), rates);
  const int64_t warp_tiles = ceil_div(groups, kWarps) * group.tiles;
  const double tiles = double(warp_tiles);
  c.products = tiles * double(slabs) * products_of_slab(math);
  c.weights_from_shared = spilled / rates.shared_bytes_per_clock;
  c.operands = double(kWarps * kColumns * slabs * kSlabBytes) / rates.shared_bytes_per_clock;
  c.specials = units * specials_of(p) / rates.special_per_clock;
  if (instructions == kEstimated) {
    const double spilled_products =
        tiles * double(spilled_slabs(shape, slabs)) * products_of_slab(math);
    const double pairs = double(ceil_div(groups, kWarps) * group.units * kColumns) / 32;
    instructions = solo_instructions(p.pass, p.cell, math, pairs,
                                     {c.products - spilled_products, spilled_products});
  }
  c.issue = issue_cycles(instructions, rates);
  c.latency = phases * rates.step_latency_cycles;
  c.barrier = phases * rates.block_barrier_cycles;
  c.memory = kColumns * double(p.H) * sequence_bytes(p) / rates.l2_bytes_per_clock;
  const double blocks = double(batch_tiles(p) * p.directions);
  c.load = load_cycles(load_way(false, p.pass, math, bytes_of(p.dtype), p.P),
                       warp_part(warp_tiles, slabs, shape.held_slabs), weight_bytes(p),
                       std::min<double>(blocks, device.sm_count), rates);
  const double step = busy(c, true) + c.latency + c.barrier;
  c.fetch = fetch_cycles(p, step, rates);
  const double work = step + c.fetch;
  finish(c, 1, p, device, rates);
  c.waves = std::ceil(blocks / device.sm_count);  // one fills an SM
  c.total = c.waves * (work / device.clock_ghz + c.load) + c.launch;
  return c;
}

StepCost stepwise_step(const PlanProblem& p, const Device& device, const Rates& rates) {
  const CellInfo& cell = cell_info(p.cell);
  const double B = at_least_one(p.B), sms = device.sm_count;
  const double storage = double(bytes_of(p.dtype));
  const double products = B * weight_bytes(p) / storage;
  const double multiply = products / (peak(p, rates) * rates.product_efficiency * sms);
  const double weights =
      weight_bytes(p) / std::min(rates.l2_bytes_per_clock * sms, rates.l2_device_bytes_per_clock);
  const double bytes = B * double(p.H) * (3 * cell.gates + 4) * storage;
  StepCost c;
  c.product = p.directions * std::max(multiply, weights) / device.clock_ghz;
  c.pointwise = p.directions * bytes / (rates.pointwise_bytes_per_clock * sms) / device.clock_ghz;
  c.limits = limits_of(p, device, rates);
  c.pointwise = std::max(c.pointwise, c.limits.bytes);  // alone: no product hides it
  const double host =
      p.directions * cell.phase_count * (rates.product_host_ns + rates.queued_launch_ns);
  const double start = rates.launch_ns / at_least_one(p.T);
  c.launch = host + start;
  c.total = std::max(c.product + c.pointwise, host) + start;
  return c;
}

int64_t cluster_blocks_at_once(int blocks, const Device& device, const Rates& rates) {
  const int64_t gpc = int64_t(rates.gpc_sms);
  const int64_t whole = device.sm_count / gpc, left = device.sm_count % gpc;
  return (whole * (gpc / blocks) + left / blocks) * blocks;
}

StepCost team_step(const PlanProblem& p, Math math, const Team& team, const Device& device,
                   const Rates& rates, double instructions) {
  check_team(team, p.pass);
  const int phases = cell_info(p.cell).gate_phases();
  const Share share = share_of(p, math, team);
  const double teams = double(ceil_div(batch_tiles(p), team.tiles)) * p.directions;
  const double blocks = teams * team.blocks;
  const bool from_l2 = team.kind == TeamKind::kGrid && !team.scattered;
  const double at_once = std::min<double>(blocks, device.sm_count);
  const double rows = team.scattered ? full_schedulers(share.row_tiles) : double(share.row_tiles);
  StepCost c;
  c.mma = multiply_cycles(math, rows, share.slabs, rates);
  c.products = share.warp.tiles * (share.warp.held + share.warp.spilled) * products_of_slab(math);
  c.weights_from_shared = share.streamed * kSlabShared / rates.shared_bytes_per_clock;
  c.operands = kColumns * share.operands * operand_bytes(math) /
               (from_l2 ? l2_rate(at_once, rates) : rates.shared_bytes_per_clock);
  if (!team.scattered) {  // written and read
    c.partials = 2 * kWarps * kColumns * kRows * double(share.row_tiles) * kPartialBytes /
                 rates.shared_bytes_per_clock;
  }
  c.specials = double(share.units) * kColumns * specials_of(p) / rates.special_per_clock;
  if (instructions == kEstimated) {
    const double streamed = share.streamed / kWarps * products_of_slab(math);
    const double pairs = double(ceil_div(share.units * kColumns, kThreads));
    instructions = team_instructions(team.kind, p.pass, p.cell, math, pairs,
                                     {std::max(c.products - streamed, 0.0), streamed});
  }
  c.issue = issue_cycles(instructions, rates);
  c.latency = phases * (rates.step_latency_cycles + (from_l2 ? rates.l2_latency_cycles : 0));
  c.barrier = phases * barriers_of(team.kind) * rates.block_barrier_cycles;
  c.memory = kColumns * double(share.units) * sequence_bytes(p) / rates.l2_bytes_per_clock;
  const LoadWay way = load_way(true, p.pass, math, bytes_of(p.dtype), p.P);
  c.load = load_cycles(way, share.warp, weight_bytes(p) / team.blocks, at_once, rates);
  const double turn = busy(c, !from_l2) + c.latency + c.barrier;
  c.fetch = fetch_cycles(p, turn, rates);
  const double work = (turn + c.fetch) * team.tiles / device.clock_ghz;
  const double exchange = exchange_ns(p, math, team, share.units, device, rates);
  finish(c, team.tiles, p, device, rates);
  if (team.kind == TeamKind::kGrid) {  // its workspace is zeroed first
    c.launch += rates.queued_launch_ns / at_least_one(p.T);
  }
  c.waves = team_waves(team, blocks, device, rates);
  c.hidden = std::min(exchange, work * (team.tiles - 1) / team.tiles);
  c.exchange = exchange - c.hidden;
  c.total = c.waves * (work + c.exchange + c.load) + c.launch;
  return c;
}

}  // namespace rnnfast::cuda
