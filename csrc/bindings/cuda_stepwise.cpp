// The stepwise strategy's loop over the steps (cuda/stepwise/arguments.h). Nothing here waits for the device,
// and memory is torch's, so that a CUDA graph can capture it.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include "cuda/stepwise/arguments.h"
#include "cuda_device.h"
#include "cuda_scan.h"

namespace rnnfast {
namespace {

using at::Tensor;

// f(a value of the storage type)
template <class F>
void with_storage(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kBFloat16:
      return f(cuda::Bf16{});
    case at::kHalf:
      return f(cuda::F16{});
    case at::kFloat:
      return f(float{});
    case at::kDouble:
      return f(double{});
    default:
      TORCH_CHECK_TYPE(false, "no kernel for ", dtype);
  }
}

at::ScalarType wide(at::ScalarType dtype) { return dtype == at::kDouble ? dtype : at::kFloat; }

// The recurrent weights of the two phases, [2·H, H] and [H, H].
struct PhaseWeights {
  Tensor rz, n;

  PhaseWeights(const Tensor& w_hh, int64_t H)
      : rz(w_hh.narrow(0, 0, 2 * H)), n(w_hh.narrow(0, 2 * H, H)) {}
};

template <class Args>
void fill_sizes(const Sizes& sizes, const Tensor& lengths, const Tensor& resets, bool reverse,
                Args& args) {
  args.T = sizes.T, args.B = sizes.B, args.H = sizes.H, args.P = sizes.P;
  args.lengths = pointer<const int64_t>(lengths);
  args.resets = pointer<const bool>(resets);
  args.reverse = reverse;
}

// Operands of products begin as zeros: a kernel leaves out the rows of sequences that ended, and a
// product may read them beside others.
template <class S>
void forward(const ForwardScan& scan, const ForwardTensors& in) {
  using Kernels = cuda::Stepwise<S>;
  const auto& [cell, dtype, T, B, H, P] = scan.sizes;
  const bool two_phases = cell->phases == 2;
  const auto storage = in.w_hh.options();
  const auto wider = storage.dtype(wide(dtype));
  Tensor operand = at::empty({B, P}, storage),
         product = at::empty({B, (two_phases ? 2 : cell->gates) * H}, storage);
  Tensor h_state, c_state, u, candidate, m, projected;
  if (cell->gates == 3) h_state = at::empty({B, H}, wider);
  if (cell->states == 2) c_state = at::empty({B, H}, wider);
  if (two_phases) u = at::zeros({B, H}, storage), candidate = at::empty({B, H}, storage);
  if (cell->projected) m = at::zeros({B, H}, storage), projected = at::empty({B, P}, storage);

  cuda::StepwiseForward f;
  fill_sizes(scan.sizes, scan.lengths, scan.resets, in.reverse, f);
  f.training = scan.training;
  f.gates = pointer<void>(in.gates);
  f.h0 = pointer<const void>(in.h0), f.c0 = pointer<const void>(in.c0);
  f.y = pointer<void>(in.y), f.c = pointer<void>(in.c);
  f.h_last = pointer<void>(in.h_last), f.c_last = pointer<void>(in.c_last);
  f.operand = pointer<void>(operand), f.product = pointer<const void>(product);
  f.h_state = pointer<void>(h_state), f.c_state = pointer<void>(c_state);
  f.u = pointer<void>(u), f.candidate = pointer<const void>(candidate);
  f.m = pointer<void>(m), f.every_m = pointer<void>(in.every_m);
  f.projected = pointer<const void>(projected);

  const cuda::Stream stream = current_stream();
  Kernels::start(f, stream);
  for (f.step = 0; f.step < T; ++f.step) {
    if (two_phases) {
      const PhaseWeights weights(in.w_hh, H);
      at::mm_out(product, operand, weights.rz.t());
      Kernels::reset(f, stream);
      at::mm_out(candidate, u, weights.n.t());
    } else {
      at::mm_out(product, operand, in.w_hh.t());
    }
    Kernels::step(cell->id, f, stream);
    if (cell->projected) {
      at::mm_out(projected, m, in.w_hr.t());
      Kernels::project(f, stream);
    }
  }
}

template <class S>
void backward(const BackwardScan& scan, const BackwardTensors& in) {
  using Kernels = cuda::Stepwise<S>;
  const auto& [cell, dtype, T, B, H, P] = scan.sizes;
  const bool two_phases = cell->phases == 2;
  const auto storage = in.w_hh.options();
  Tensor operand = at::zeros({B, (two_phases ? 2 : cell->gates) * H}, storage),
         product = at::empty({B, P}, storage);
  Tensor dh_state = in.dh_last.to(wide(dtype), false, /*copy=*/true);
  Tensor dc_state, candidate_operand, du, h_operand, dm;
  if (cell->states == 2) dc_state = in.dc_last.to(wide(dtype), false, /*copy=*/true);
  if (two_phases) candidate_operand = at::zeros({B, H}, storage), du = at::empty({B, H}, storage);
  if (cell->projected) h_operand = at::zeros({B, P}, storage), dm = at::empty({B, H}, storage);

  cuda::StepwiseBackward g;
  fill_sizes(scan.sizes, scan.lengths, scan.resets, in.reverse, g);
  g.saved = pointer<const void>(in.saved);
  g.y = pointer<const void>(in.y), g.c = pointer<const void>(in.c);
  g.h0 = pointer<const void>(in.h0), g.c0 = pointer<const void>(in.c0);
  g.dy = pointer<const void>(in.dy), g.dc = pointer<const void>(in.dc);
  g.dgates = pointer<void>(in.dgates), g.every_dh = pointer<void>(in.every_dh);
  g.dh0 = pointer<void>(in.dh0), g.dc0 = pointer<void>(in.dc0);
  g.scale = pointer<const float>(scan.scale), g.clip = scan.clip;
  g.dh_state = pointer<void>(dh_state), g.dc_state = pointer<void>(dc_state);
  g.operand = pointer<void>(operand), g.product = pointer<const void>(product);
  g.candidate_operand = pointer<void>(candidate_operand), g.du = pointer<const void>(du);
  g.h_operand = pointer<void>(h_operand), g.dm = pointer<const void>(dm);

  const cuda::Stream stream = current_stream();
  for (g.step = T - 1; g.step >= 0; --g.step) {
    if (two_phases) {
      const PhaseWeights weights(in.w_hh, H);
      Kernels::candidate(g, stream);
      at::mm_out(du, candidate_operand, weights.n);
      Kernels::step(cell->id, g, stream);
      at::mm_out(product, operand, weights.rz);
      continue;
    }
    if (cell->projected) {
      Kernels::unproject(g, stream);
      at::mm_out(dm, h_operand, in.w_hr);
    }
    Kernels::step(cell->id, g, stream);
    at::mm_out(product, operand, in.w_hh);
  }
  Kernels::finish(g, stream);
}

}  // namespace

void run_stepwise(const ForwardScan& scan) {
  for (const ForwardTensors& direction : scan.directions) {
    with_storage(scan.sizes.dtype, [&](auto zero) { forward<decltype(zero)>(scan, direction); });
  }
}

void run_stepwise(const BackwardScan& scan) {
  for (const BackwardTensors& direction : scan.directions) {
    with_storage(scan.sizes.dtype, [&](auto zero) { backward<decltype(zero)>(scan, direction); });
  }
}

}  // namespace rnnfast
