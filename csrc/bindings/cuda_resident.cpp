// The resident strategy: one launch for all steps and directions (cuda/sequence.h).
#include "cuda/sequence.h"
#include "cuda_device.h"
#include "cuda_scan.h"

namespace rnnfast {
namespace {

template <class Scan, class Direction>
void fill_masks(const Scan& scan, bool reverse, Direction& d) {
  d.lengths = pointer<const int64_t>(scan.lengths);
  d.resets = pointer<const bool>(scan.resets);
  d.reverse = reverse;
}

template <class Scan, class Args>
void fill_sizes(const Scan& scan, Args& args) {
  args.T = scan.sizes.T, args.B = scan.sizes.B, args.H = scan.sizes.H;
  args.relu = scan.sizes.cell->id == CellId::kRnnRelu;
  args.directions = static_cast<int>(scan.directions.size());
}

}  // namespace

void run_resident(const ForwardScan& scan, cuda::Math math, int shape) {
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
  }
  cuda::launch_sequence_forward(scan.sizes.cell->id, {math, shape}, args, current_stream());
}

void run_resident(const BackwardScan& scan, cuda::Math math, int shape) {
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
  }
  cuda::launch_sequence_backward(scan.sizes.cell->id, {math, shape}, args, current_stream());
}

}  // namespace rnnfast
