// The resident strategies: one launch for all steps and directions, by blocks that each have all
// hidden units (cuda/solo/sequence.h), or by teams of blocks (cuda/team/sequence.h).
#include "cuda/solo/sequence.h"
#include "ops_cuda/device.h"
#include "ops_cuda/scan.h"
#include "ops_cuda/turn.h"

namespace rnnfast::ops {
namespace {

template <class Scan, class Direction>
void fill_masks(const Scan& scan, bool reverse, Direction& d) {
  d.lengths = pointer<const int64_t>(scan.lengths);
  d.resets = pointer<const bool>(scan.resets);
  d.reverse = reverse;
}

template <class V>
cuda::Carried<V> carried(const CarriedTensors& from) {
  return {pointer<V>(from.h), pointer<V>(from.c)};
}

template <class Scan, class Args>
void fill_sizes(const Scan& scan, Args& args) {
  args.T = scan.sizes.T, args.B = scan.sizes.B, args.H = scan.sizes.H;
  args.relu = scan.sizes.cell->id == CellId::kRnnRelu;
  args.directions = static_cast<int>(scan.directions.size());
}

cuda::ForwardArgs arguments(const ForwardScan& scan) {
  cuda::ForwardArgs args;
  fill_sizes(scan, args);
  args.training = scan.training;
  for (size_t i = 0; i < scan.directions.size(); ++i) {
    const ForwardTensors& from = scan.directions[i];
    cuda::ForwardDirection& d = args.direction[i];
    fill_masks(scan, from.reverse, d);
    d.w_hh = pointer<const void>(from.w_hh);
    d.gates = pointer<void>(from.gates);
    d.h0 = pointer<const void>(from.h0), d.c0 = pointer<const void>(from.c0);
    d.y = pointer<void>(from.y), d.c = pointer<float>(from.c);
    d.h_last = pointer<void>(from.h_last), d.c_last = pointer<void>(from.c_last);
    d.before = carried<const float>(from.before), d.after = carried<float>(from.after);
  }
  return args;
}

cuda::BackwardArgs arguments(const BackwardScan& scan) {
  cuda::BackwardArgs args;
  fill_sizes(scan, args);
  args.scale = pointer<const float>(scan.scale);
  args.clip = static_cast<float>(scan.clip);
  for (size_t i = 0; i < scan.directions.size(); ++i) {
    const BackwardTensors& from = scan.directions[i];
    cuda::BackwardDirection& d = args.direction[i];
    fill_masks(scan, from.reverse, d);
    d.w_hh = pointer<const void>(from.w_hh);
    d.saved = pointer<const void>(from.saved);
    d.y = pointer<const void>(from.y), d.c = pointer<const float>(from.c);
    d.h0 = pointer<const void>(from.h0), d.c0 = pointer<const void>(from.c0);
    d.dy = pointer<const void>(from.dy), d.dc = pointer<const void>(from.dc);
    d.dh_last = pointer<const void>(from.dh_last), d.dc_last = pointer<const void>(from.dc_last);
    d.dgates = pointer<void>(from.dgates);
    d.dh0 = pointer<void>(from.dh0), d.dc0 = pointer<void>(from.dc0);
    d.c_before = pointer<const float>(from.c_before);
    d.after = carried<const float>(from.after), d.before = carried<float>(from.before);
  }
  return args;
}

// What the blocks of grid teams exchange through; it lives as long as the launch that uses it, as
// torch's allocator hands memory on in the order of the stream.
Optional workspace(const Sizes& sizes, cuda::Pass pass, const cuda::TeamChoice& choice,
                   size_t directions, const Tensor& like) {
  const int64_t bytes =
      cuda::team_workspace(choice.kind, pass, sizes.cell->id, choice.math, sizes.H, choice.teams,
                           choice.tiles, static_cast<int>(directions));
  if (bytes == 0) return std::nullopt;
  return zeros_like(like, {bytes}, ScalarType::Byte);
}

}  // namespace

void run_resident(const ForwardScan& scan, cuda::Math math, int shape) {
  cuda::launch_sequence_forward(scan.sizes.cell->id, {math, shape}, arguments(scan),
                                current_stream(*scan.directions[0].w_hh));
}

void run_resident(const BackwardScan& scan, cuda::Math math, int shape) {
  cuda::launch_sequence_backward(scan.sizes.cell->id, {math, shape}, arguments(scan),
                                 current_stream(*scan.directions[0].w_hh));
}

void run_team(const ForwardScan& scan, const cuda::TeamChoice& choice) {
  const Optional bytes = workspace(scan.sizes, cuda::Pass::kForward, choice, scan.directions.size(),
                                   *scan.directions[0].w_hh);
  const cuda::Stream stream = current_stream(*scan.directions[0].w_hh);
  GridTurn turn(choice.kind == cuda::TeamKind::kGrid, stream);
  cuda::launch_team_forward(scan.sizes.cell->id, choice, arguments(scan), pointer<void>(bytes),
                            stream);
  turn.launched();
}

void run_team(const BackwardScan& scan, const cuda::TeamChoice& choice) {
  const Optional bytes = workspace(scan.sizes, cuda::Pass::kBackward, choice,
                                   scan.directions.size(), *scan.directions[0].w_hh);
  const cuda::Stream stream = current_stream(*scan.directions[0].w_hh);
  GridTurn turn(choice.kind == cuda::TeamKind::kGrid, stream);
  cuda::launch_team_backward(scan.sizes.cell->id, choice, arguments(scan), pointer<void>(bytes),
                             stream);
  turn.launched();
}

int64_t cuda_room(std::string cell, std::string strategy, std::string math,
                  std::vector<int64_t> choice, bool backward, int64_t H, int64_t device) {
  require(strategy == "cluster" || strategy == "grid", "no teams are called '", strategy, "'");
  require(choice.size() == 4, "a team has 4 numbers, got ", choice.size());
  const OnDevice guard(static_cast<int>(device));
  const auto number = [&](size_t i) { return static_cast<int>(choice[i]); };
  const cuda::TeamKind kind = strategy == "grid" ? cuda::TeamKind::kGrid : cuda::TeamKind::kCluster;
  return cuda::team_room(
      backward ? cuda::Pass::kBackward : cuda::Pass::kForward, find_cell(cell).id,
      {kind, cuda::math_by_name(math), number(0), number(1), number(2), number(3)}, H);
}

}  // namespace rnnfast::ops
