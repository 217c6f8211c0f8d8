// The input's part of the gates as a large product, for cells that are built in and others.
#pragma once

#include <optional>

#include "cpu/call.h"
#include "cpu/product.h"
#include "python/tensor.h"

namespace rnnfast::python {

using Input = cpu::GivenInput<Tensor>;

// x [T, B, I] of any strides and what it is multiplied with, to `columns` of the gates.
inline Input input_of(const Tensor& x_, const std::optional<Tensor>& w_ih_,
                      const std::optional<Tensor>& b_ih_, ScalarType dtype, int64_t columns) {
  check_value(w_ih_ && w_ih_->dim() == 2 && w_ih_->size(1) > 0, "x needs w_ih");
  const int64_t I = w_ih_->size(1);
  check_value(x_.is_cpu(), "x must be on the CPU, got ", x_.device());
  check_type(x_.scalar_type() == dtype, "x must be ", dtype, ", got ", x_.scalar_type());
  check_value(x_.dim() == 3 && x_.size(2) == I, "x must have ", I, " columns, got ", x_.sizes());
  Tensor x = x_.values();
  if (x.stride(2) != 1) x = x.contiguous();
  const Tensor w_ih = checked("w_ih", w_ih_, dtype, {columns, I}).value();
  return {x, w_ih, checked("b_ih", b_ih_, dtype, {columns}), I, x.stride(0), x.stride(1)};
}

// Whether a scan of B sequences on rows × units threads should make the input's part of the gates,
// of so many columns, itself: each thread has sequences of its own, enough of them for the product,
// and its packed weights do not fill the cache. Where the plan, which counts the recurrent product
// only, leaves threads idle, a large product of the input needs them.
inline bool makes_input(int rows, int units, int64_t B, int64_t I, int64_t columns,
                        int scalar_bytes) {
  constexpr int64_t kMostBytes = int64_t(4) << 20, kLeastRows = 16, kMostWork = 100000;
  const int64_t weights = columns * I;
  const bool idle = rows < host_threads();
  return units == 1 && B / rows >= kLeastRows && I > 0 && weights * scalar_bytes <= kMostBytes &&
         !(idle && weights * B > kMostWork);
}

// x·W_ihᵀ + b_ih into gates [T, B, …].
template <class X>
void project(const Input& input, const Tensor& gates, int threads) {
  const int64_t T = gates.size(0), B = gates.size(1);
  const bool even = T == 1 || B == 1 || input.x_step == B * input.x_row;
  const Tensor x = even ? input.x : input.x.contiguous();
  cpu::Gemm<X> g;
  g.M = T * B, g.N = gates.size(2), g.K = input.I;
  g.a = cpu::data<const X>(x), g.a_column = 1;
  g.a_row = B == 1 ? x.stride(0) : x.stride(1);
  g.b = cpu::data<const X>(input.w_ih), g.b_row = 1, g.b_column = input.I;
  g.c = cpu::data<cpu::Wide<X>>(gates), g.c_row = g.N;
  g.row = cpu::data<const X>(input.b_ih);
  const WithoutGil no_gil;
  cpu::multiply(g, threads, cpu::scratch);
}

}  // namespace rnnfast::python
