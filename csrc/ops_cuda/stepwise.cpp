// The stepwise strategy's loop over the steps (cuda/stepwise/arguments.h). Nothing here waits for
// the device, and memory is torch's, so that a CUDA graph can capture it.
#include <vector>

#include "cuda/stepwise/arguments.h"
#include "ops_cuda/device.h"
#include "ops_cuda/scan.h"

namespace rnnfast::ops {
namespace {

// f(a value of the storage type)
template <class F>
void with_storage(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return f(cuda::Bf16{});
    case ScalarType::Half:
      return f(cuda::F16{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      require(false, "no kernel for ", dtype);
  }
}

// The weights of a phase: its gates' rows of W_hh, or W_hr.
template <class Given>
Tensors phase_weights(const CellInfo& cell, const Given& in, int64_t H) {
  Tensors weights;
  for (int p = 0; p < cell.phase_count; ++p) {
    const Phase& phase = cell.phases[p];
    Tensor w_hh = *in.w_hh;
    weights.push_back(phase.matrix == Matrix::kWhr
                          ? *in.w_hr
                          : torch::stable::narrow(w_hh, 0, phase.first * H, phase.gates * H));
  }
  return weights;
}

template <class Args>
void fill_sizes(const Sizes& sizes, const Optional& lengths, const Optional& resets, bool reverse,
                Args& args) {
  args.T = sizes.T, args.B = sizes.B, args.H = sizes.H, args.P = sizes.P;
  args.lengths = pointer<const int64_t>(lengths);
  args.resets = pointer<const bool>(resets);
  args.reverse = reverse;
}

template <class Args>
void set_products(const Tensors& operand, const Tensors& product, Args& args) {
  for (size_t p = 0; p < product.size(); ++p) {
    args.operand[p] = pointer<void>(operand[p]);
    args.product[p] = pointer<const void>(product[p]);
  }
}

// left · right, by torch.
void multiply(const Tensor& left, const Tensor& right, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(mm_out(out.get(), left.get(), right.get()));
}

// Operands of products begin as zeros: a kernel leaves out the rows of sequences that ended, and a
// product may read them beside others.
template <class S>
void forward(const ForwardScan& scan, const ForwardTensors& in) {
  using Kernels = cuda::Stepwise<S>;
  const auto& [cell, dtype, T, B, H, P] = scan.sizes;
  const Tensors weights = phase_weights(*cell, in, H);
  Tensors operand, product;
  for (const Tensor& w : weights) {
    operand.push_back(zeros_like(w, {B, w.size(1)}, dtype));
    product.push_back(empty_like(w, {B, w.size(0)}, dtype));
  }
  Optional h_state, c_state;
  if (cell->reads_h) h_state = empty_like(*in.w_hh, {B, H}, wide(dtype));
  if (cell->states == 2) c_state = empty_like(*in.w_hh, {B, H}, wide(dtype));

  cuda::StepwiseForward f;
  fill_sizes(scan.sizes, scan.lengths, scan.resets, in.reverse, f);
  f.training = scan.training;
  f.gates = pointer<void>(in.gates);
  f.h0 = pointer<const void>(in.h0), f.c0 = pointer<const void>(in.c0);
  f.y = pointer<void>(in.y), f.c = pointer<void>(in.c);
  f.h_last = pointer<void>(in.h_last), f.c_last = pointer<void>(in.c_last);
  f.h_state = pointer<void>(h_state), f.c_state = pointer<void>(c_state);
  f.every_m = pointer<void>(in.every_m);
  set_products(operand, product, f);

  const cuda::Stream stream = current_stream(*in.w_hh);
  Tensors transposed;
  for (const Tensor& w : weights) transposed.push_back(torch::stable::transpose(w, 0, 1));
  Kernels::start(f, stream);
  for (f.step = 0; f.step < T; ++f.step) {
    for (int p = 0; p < cell->phase_count; ++p) {
      multiply(operand[p], transposed[p], product[p]);
      Kernels::phase(cell->id, p, f, stream);
    }
  }
}

template <class S>
void backward(const BackwardScan& scan, const BackwardTensors& in) {
  using Kernels = cuda::Stepwise<S>;
  const auto& [cell, dtype, T, B, H, P] = scan.sizes;
  const Tensors weights = phase_weights(*cell, in, H);
  Tensors operand, product;
  for (const Tensor& w : weights) {
    operand.push_back(zeros_like(w, {B, w.size(0)}, dtype));
    product.push_back(empty_like(w, {B, w.size(1)}, dtype));
  }
  const Tensor dh_state = copied(*in.dh_last, wide(dtype));
  Optional dc_state;
  if (cell->states == 2) dc_state = copied(*in.dc_last, wide(dtype));

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
  set_products(operand, product, g);

  const cuda::Stream stream = current_stream(*in.w_hh);
  for (g.step = T - 1; g.step >= 0; --g.step) {
    for (int p = cell->phase_count - 1; p >= 0; --p) {
      Kernels::phase(cell->id, p, g, stream);
      multiply(operand[p], weights[p], product[p]);
    }
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

}  // namespace rnnfast::ops
