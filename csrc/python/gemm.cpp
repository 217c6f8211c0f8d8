// The product of large matrices (csrc/cpu/gemm.h) for Python, on CPU tensors.
#include <algorithm>
#include <optional>

#include "cpu/call.h"
#include "cpu/kernels.h"
#include "cpu/product.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"
#include "python/bind.h"
#include "python/module.h"

namespace rnnfast::python {
namespace {

// One of its strides is 1.
Tensor plain(const Tensor& matrix) {
  const Tensor values = matrix.values();
  const bool by_row = values.stride(1) == 1, by_column = values.stride(0) == 1;
  return by_row || by_column ? values : values.contiguous();
}

// A matrix as a product has it.
template <class S>
struct Matrix {
  S* data;
  int64_t rows, columns, row, column;  // strides

  explicit Matrix(const Tensor& t)
      : Matrix(cpu::data<S>(t), t.size(0), t.size(1), t.stride(0), t.stride(1)) {}
  Matrix(S* d, int64_t m, int64_t n, int64_t r, int64_t c)
      : data(d), rows(m), columns(n), row(r), column(c) {}
  Matrix turned() const { return {data, columns, rows, column, row}; }
};

// Whether Cᵀ = Bᵀ·Aᵀ is the better product: A's rows, which are not contiguous, would be packed for
// few columns. Turning C costs as much as some hundred steps.
template <class A, class S>
bool is_thin(const Matrix<A>& a, const Matrix<S>& c) {
  constexpr int64_t kThin = 128, kSteps = 512;
  return a.column != 1 && a.columns >= kSteps && c.columns <= std::min(kThin, c.rows);
}

template <class A, class B, class S>
void straight(const Matrix<A>& a, const Matrix<B>& b, const B* row, bool add, const Matrix<S>& c,
              int threads) {
  cpu::Gemm<A, B> g;
  g.M = c.rows, g.N = c.columns, g.K = a.columns;
  g.a = a.data, g.a_row = a.row, g.a_column = a.column;
  g.b = b.data, g.b_row = b.row, g.b_column = b.column;
  g.c = c.data, g.c_row = c.row;
  g.row = row, g.add = add;
  cpu::multiply(g, threads, cpu::scratch);
}

template <class S>
void multiply(const Matrix<S>& a, const Matrix<S>& b, const S* row, bool add, const Matrix<S>& c,
              int threads) {
  if (row || !is_thin(a, c)) return straight(a, b, row, add, c, threads);
  std::vector<S> turned(c.rows * c.columns);
  const Matrix<S> result(turned.data(), c.columns, c.rows, c.rows, 1);
  straight(b.turned(), a.turned(), row, false, result, threads);
  cpu::on_threads(threads, [&](int id, int n) {
    for (int64_t i = c.rows * id / n; i < c.rows * (id + 1) / n; ++i) {
      for (int64_t j = 0; j < c.columns; ++j) {
        S& out = c.data[i * c.row + j];
        out = (add ? out : S(0)) + turned[j * c.rows + i];
      }
    }
  });
}

template <class S>
void multiply(const Tensor& a, const Tensor& b, const std::optional<Tensor>& row, bool add,
              const Tensor& c) {
  const int threads = host_threads();
  const WithoutGil no_gil;
  multiply(Matrix<S>(a), Matrix<S>(b), row ? row->const_data_ptr<S>() : nullptr, add, Matrix<S>(c),
           threads);
}

// Of A in float32, or like B; B in 16 bits.
template <class A, class B>
Tensor narrow_product(const Tensor& a, const Tensor& b) {
  const Tensor c = empty({a.size(0), b.size(1)}, ScalarType::Float);
  const int threads = host_threads();
  const WithoutGil no_gil;
  straight<A, B, float>(Matrix<A>(a), Matrix<B>(b), nullptr, false, Matrix<float>(c), threads);
  return c;
}

void check_matrix(const char* name, const Tensor& matrix, int64_t dim, ScalarType dtype) {
  check_value(matrix.is_cpu(), name, " must be on the CPU, got ", matrix.device());
  check_value(matrix.dim() == dim, name, " must be ", dim, "-D, got ", matrix.dim(), "-D");
  check_type(matrix.scalar_type() == dtype, name, " must be ", dtype, ", got ",
             matrix.scalar_type());
}

// a [M, K] · b [K, N], with `row` [N] added to each row; or into += a · b. `out`: where the product
// goes, of which the rows may lie apart.
Tensor product(const Tensor& a, const Tensor& b, const std::optional<Tensor>& row,
               const std::optional<Tensor>& into, const std::optional<Tensor>& out) {
  const ScalarType dtype = a.scalar_type();
  check_type(dtype == ScalarType::Float || dtype == ScalarType::Double,
             "expected float32 or float64, got ", dtype);
  check_matrix("a", a, 2, dtype);
  check_matrix("b", b, 2, dtype);
  check_value(a.size(1) == b.size(0), "a ", a.sizes(), " and b ", b.sizes(),
              " cannot be multiplied");
  const Shape shape{a.size(0), b.size(1)};
  if (row) {
    check_matrix("row", *row, 1, dtype);
    check_value(!into && row->size(0) == b.size(1), "row must have shape [", b.size(1),
                "] and no sum to add to");
  }
  if (into) {
    check_matrix("into", *into, 2, dtype);
    check_value(into->sizes() == Sizes(shape) && into->is_contiguous(),
                "into must be contiguous and have shape ", Sizes(shape), ", got ", into->sizes());
  }
  if (out) {
    check_matrix("out", *out, 2, dtype);
    check_value(!into && out->sizes() == Sizes(shape) && (shape[1] < 2 || out->stride(1) == 1),
                "out must have shape ", Sizes(shape), " and whole rows, got ", out->sizes());
  }
  const Tensor c = into ? *into : out ? *out : empty(shape, dtype);
  std::optional<Tensor> begun = row;
  if (begun) begun = begun->values().contiguous();
  dtype == ScalarType::Float ? multiply<float>(plain(a), plain(b), begun, into.has_value(), c)
                             : multiply<double>(plain(a), plain(b), begun, into.has_value(), c);
  return c;
}

// a [M, K] · b [K, N] in float32, of b in 16 bits and a like it or in float32.
Tensor wide_product(const Tensor& a, const Tensor& b) {
  const ScalarType dtype = b.scalar_type(), given = a.scalar_type();
  check_type(wide(dtype) != dtype, "b must be bfloat16 or float16, got ", dtype);
  check_matrix("b", b, 2, dtype);
  check_matrix("a", a, 2, given == dtype ? dtype : ScalarType::Float);
  check_value(a.size(1) == b.size(0), "a ", a.sizes(), " and b ", b.sizes(),
              " cannot be multiplied");
  Tensor rows = a.values();
  if (rows.stride(1) != 1) rows = rows.contiguous();
  using cpu::BFloat16, cpu::Half;
  // rows that repeat one another are no pairs
  const Tensor values = b.stride(0) == 0 ? b.values().contiguous() : plain(b);
  if (dtype == ScalarType::BFloat16)
    return given == dtype ? narrow_product<BFloat16, BFloat16>(rows, values)
                          : narrow_product<float, BFloat16>(rows, values);
  return given == dtype ? narrow_product<Half, Half>(rows, values)
                        : narrow_product<float, Half>(rows, values);
}

// On `threads` threads at once; in floating-point operations, all together.
double multiply_adds(int64_t rounds, int threads) {
  const WithoutGil no_gil;
  double done = 0;
  cpu::on_threads(threads, [&](int id, int found) {
    const double mine = cpu::kernels().multiply_adds(rounds);
    if (id == 0) done = mine * found;
  });
  return done;
}

}  // namespace

void bind_gemm(std::vector<PyMethodDef>& functions) {
  bind<&product>(functions, "cpu_product", "a, b, *, row, into, out");
  bind<&wide_product>(functions, "cpu_wide_product", "a, b");
  bind<&multiply_adds>(functions, "cpu_multiply_adds", "rounds, threads");
}

}  // namespace rnnfast::python
