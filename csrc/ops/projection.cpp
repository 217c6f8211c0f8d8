// The input's part of the gates.
#include <array>

#include "cpu/call.h"
#include "cpu/product.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

using cpu::data;

// x·Wᵀ + b of x [N, I]. By our own product whatever the sizes: torch's would heed autocast.
template <class X>
void multiply(const Tensor& x, const Tensor& weight, const Optional& bias, const Tensor& gates) {
  cpu::Gemm<X> g;
  g.M = x.size(0), g.N = weight.size(0), g.K = x.size(1);
  g.a = data<const X>(x), g.a_row = g.K, g.a_column = 1;
  g.b = data<const X>(weight), g.b_row = 1, g.b_column = g.K;
  g.c = data<cpu::Wide<X>>(gates), g.c_row = g.N;
  g.row = data<const X>(bias);
  cpu::multiply(g, cpu::threads_of(int(torch::stable::get_num_threads())), cpu::scratch);
}

Tensor dense(const Scan& scan) {
  const int64_t N = scan.T * scan.B, GH = scan.gate_width();
  const Tensor x = torch::stable::reshape(plain(scan.input, scan.storage), Shape{N, scan.I});
  const Tensor weight = plain(*scan.weights.w_ih, scan.storage);
  Optional bias;
  if (scan.weights.b_ih) bias = plain(*scan.weights.b_ih, scan.storage);
  const Tensor gates = empty({scan.T, scan.B, GH}, scan.wide());
  cpu::with_storage(scan.storage, [&](auto stored) {
    multiply<typename decltype(stored)::Type>(x, weight, bias, gates);
  });
  return gates;
}

// A one-hot row times Wᵀ is a column of W. Past the end of a sequence any token will do.
template <class S>
void look_up(const Scan& scan, const Tensor& weight, const Optional& bias, const Tensor& gates) {
  const int64_t I = scan.I, B = scan.B, GH = scan.gate_width();
  const int64_t *tokens = data<const int64_t>(scan.input),
                *lengths = data<const int64_t>(scan.lengths);
  const S *columns = data<const S>(weight), *row = data<const S>(bias);
  S* out = data<S>(gates);
  torch::stable::parallel_for(0, scan.T * B, 1 + 4096 / GH, [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const bool alive = !lengths || n / B < lengths[n % B];
      for (int64_t j = 0; j < GH; ++j) {
        const S value = alive ? columns[j * I + tokens[n]] : S(0);
        out[n * GH + j] = row ? value + row[j] : value;
      }
    }
  });
}

}  // namespace

Tensor projected(const Scan& scan) {
  const ScalarType dtype = scan.wide();
  if (scan.kind == "gates") return copied(scan.input, dtype);
  if (scan.kind == "dense") return dense(scan);
  const Tensor weight = plain(*scan.weights.w_ih, dtype);
  Optional bias;
  if (scan.weights.b_ih) bias = plain(*scan.weights.b_ih, dtype);
  const Tensor gates = empty({scan.T, scan.B, scan.gate_width()}, dtype);
  dtype == ScalarType::Float ? look_up<float>(scan, weight, bias, gates)
                             : look_up<double>(scan, weight, bias, gates);
  return gates;
}

}  // namespace rnnfast::ops
