// The product of large matrices (csrc/cpu/gemm.h) for Python, on CPU tensors.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <optional>

#include "bindings/product.h"
#include "bindings/scratch.h"
#include "bindings/threads.h"
#include "cpu/kernels.h"
#include "cpu/product.h"
#include "cpu/threads.h"

namespace rnnfast {
namespace {

namespace py = pybind11;
using at::Tensor;

// One of its strides is 1.
Tensor plain(const Tensor& matrix) {
  const Tensor values = matrix.resolve_neg();
  const bool by_row = values.stride(1) == 1, by_column = values.stride(0) == 1;
  return by_row || by_column ? values : values.contiguous();
}

// Whether Cᵀ = Bᵀ·Aᵀ is the better product: A's rows, which are not contiguous, would be packed for
// few columns. Turning C costs as much as some hundred steps.
bool is_thin(const Tensor& a, const Tensor& c) {
  constexpr int64_t kThin = 128, kSteps = 512;
  return a.stride(1) != 1 && a.size(1) >= kSteps && c.size(1) <= std::min(kThin, c.size(0));
}

template <class S>
void multiply(const Tensor& a, const Tensor& b, const std::optional<Tensor>& row, bool add,
              const Tensor& c) {
  cpu::Gemm<S> g;
  g.M = c.size(0), g.N = c.size(1), g.K = a.size(1);
  g.a = a.const_data_ptr<S>(), g.a_row = a.stride(0), g.a_column = a.stride(1);
  g.b = b.const_data_ptr<S>(), g.b_row = b.stride(0), g.b_column = b.stride(1);
  g.c = c.mutable_data_ptr<S>(), g.c_row = c.stride(0);
  g.row = row ? row->const_data_ptr<S>() : nullptr;
  g.add = add;
  Tensor workspace;
  cpu::multiply(g, host_threads(), [&](int64_t bytes) {
    workspace = scratch(bytes);
    return workspace.mutable_data_ptr();
  });
}

void multiply(const Tensor& a, const Tensor& b, const std::optional<Tensor>& row, bool add,
              const Tensor& c) {
  if (!row && is_thin(a, c)) {
    const Tensor turned = at::empty({c.size(1), c.size(0)}, c.options());
    a.scalar_type() == at::kFloat ? multiply<float>(b.t(), a.t(), row, false, turned)
                                  : multiply<double>(b.t(), a.t(), row, false, turned);
    add ? c.add_(turned.t()) : c.copy_(turned.t());
    return;
  }
  a.scalar_type() == at::kFloat ? multiply<float>(a, b, row, add, c)
                                : multiply<double>(a, b, row, add, c);
}

void check(const char* name, const Tensor& matrix, int64_t dim, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(matrix.device().is_cpu(), name, " must be on the CPU, got ", matrix.device());
  TORCH_CHECK_VALUE(matrix.layout() == at::kStrided, name, " must be strided");
  TORCH_CHECK_VALUE(matrix.dim() == dim, name, " must be ", dim, "-D, got ", matrix.dim(), "-D");
  TORCH_CHECK_TYPE(matrix.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   matrix.scalar_type());
}

}  // namespace

Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& row,
               const std::optional<Tensor>& into) {
  const at::ScalarType dtype = a.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, "expected float32 or float64, got ",
                   dtype);
  check("a", a, 2, dtype);
  check("b", b, 2, dtype);
  TORCH_CHECK_VALUE(a.size(1) == b.size(0), "a ", a.sizes(), " and b ", b.sizes(),
                    " cannot be multiplied");
  const std::array<int64_t, 2> shape{a.size(0), b.size(1)};
  if (row) {
    check("row", *row, 1, dtype);
    TORCH_CHECK_VALUE(!into && row->size(0) == b.size(1), "row must have shape [", b.size(1),
                      "] and no sum to add to");
  }
  if (into) {
    check("into", *into, 2, dtype);
    TORCH_CHECK_VALUE(into->sizes() == at::IntArrayRef(shape) && into->is_contiguous(),
                      "into must be contiguous and have shape ", at::IntArrayRef(shape), ", got ",
                      into->sizes());
  }
  const Tensor c = into ? *into : at::empty(shape, a.options());
  std::optional<Tensor> begun = row;
  if (begun) begun = begun->resolve_neg().contiguous();
  multiply(plain(a), plain(b), begun, into.has_value(), c);
  return c;
}

namespace {

// On `threads` threads at once; in floating-point operations, all together.
double multiply_adds(int64_t rounds, int threads) {
  const py::gil_scoped_release no_gil;
  double done = 0;
  cpu::on_threads(threads, [&](int id, int found) {
    const double mine = cpu::kernels().multiply_adds(rounds);
    if (id == 0) done = mine * found;
  });
  return done;
}

}  // namespace
}  // namespace rnnfast

void bind_gemm(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("cpu_product", &rnnfast::product, py::arg("a"), py::arg("b"), py::kw_only(),
        py::arg("row") = py::none(), py::arg("into") = py::none(),
        py::call_guard<py::gil_scoped_release>());
  m.def("cpu_multiply_adds", &rnnfast::multiply_adds, py::arg("rounds"), py::arg("threads"));
}
