// Tensors of 16 bits: both formats by every set of kernels that this processor has, and bfloat16 in
// pairs by the processor's dot products and tiles, where it has them, and by their emulation everywhere:
// against the reference scan in double, with the same bits however threads share the work.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "narrow_scan.h"

#define RNNFAST_ISA emulated
#define RNNFAST_VECTOR_BYTES 16
#define RNNFAST_DOTS 1
#define RNNFAST_DOTS_NAME dots_emulated
namespace rnnfast::cpu {
extern const NarrowKernels<BFloat16, BFloat16> dots_emulated, tiles_emulated;  // and test_tiles.cpp
}
#include "cpu/kernels.inc"

namespace {

using namespace narrow_scan;
namespace emulated = rnnfast::cpu::emulated;

// Of the largest value: outputs are rounded once, and in pairs h is before each product.
template <class X>
constexpr double kTolerance = std::is_same_v<X, BFloat16> ? 2e-2 : 2e-3;

template <class X>
void check_close(const Numbers& found, const Numbers& expected, const std::string& context) {
  double scale = 1e-3;
  for (const double x : expected) scale = std::fmax(scale, std::fabs(x));
  CHECK_IN(found.size() == expected.size(), context);
  for (size_t k = 0; k < expected.size() && k < found.size(); ++k) {
    if (std::fabs(found[k] - expected[k]) <= kTolerance<X> * scale) continue;
    CHECK_IN(false, context + "[" + std::to_string(k) + "]: " + check::show(found[k]) +
                        " against " + check::show(expected[k]));
  }
}

bool same(const std::vector<Numbers>& a, const std::vector<Numbers>& b) {
  for (size_t k = 0; k < a.size(); ++k) {
    if (a[k].size() != b[k].size()) return false;
    if (!a[k].empty() && std::memcmp(a[k].data(), b[k].data(), a[k].size() * sizeof(double)))
      return false;
  }
  return true;
}

template <class X, class D>
void check_scan(const cpu::NarrowKernels<X, D>& kernels, const cpu::Kernels& base, CellId cell,
                int64_t T, int64_t B, int64_t H, const Option& option) {
  const Inputs in = inputs<X>(cell, T, B, H, option);
  const Expected expected(in);
  const NarrowRun<X, D> run(kernels, base, in, {1, 1}, true);
  const std::string label = in.label() + " ";
  check_close<X>(run.y.numbers(), expected.y, label + "y");
  check_close<X>(run.c.numbers(), expected.c, label + "c");
  check_close<X>(run.h_last.numbers(), expected.h_last, label + "h_last");
  check_close<X>(run.c_last.numbers(), expected.c_last, label + "c_last");
  check_close<X>(numbers_of(run.dgx), expected.dgx, label + "dgx");
  check_close<X>(numbers_of(run.dh0), expected.dh0, label + "dh0");
  check_close<X>(numbers_of(run.dc0), expected.dc0, label + "dc0");
  for (const cpu::Split split : {cpu::Split{2, 1}, cpu::Split{1, 2}, cpu::Split{2, 2}}) {
    const NarrowRun<X, D> shared(kernels, base, in, split, true);
    // where a sequence is not alive nobody reads the saved gates
    auto left = run.all(), right = shared.all();
    if (option.lengths) left.back().clear(), right.back().clear();
    CHECK_IN(same(left, right),
             label + std::to_string(split.rows) + " x " + std::to_string(split.units));
  }
  const NarrowRun<X, D> inference(kernels, base, in, {1, 1}, false);
  CHECK_IN(same({run.y.numbers(), run.h_last.numbers(), run.c_last.numbers()},
                {inference.y.numbers(), inference.h_last.numbers(), inference.c_last.numbers()}),
           label + "inference");
}

bool has_dots() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && present().back() == &cpu::kernels_avx512;
#else
  return false;
#endif
}

bool has_tiles() { return cpu::kernels().tiles; }

// body(kernels, the set that they belong to) for all that run here; emulated ones, which are slow,
// where they are asked for.
template <class Body>
void each_set(bool emulated, const Body& body) {
  for (const cpu::Kernels* set : present()) body(set->bf16, *set), body(set->f16, *set);
#if defined(__x86_64__)
  if (has_dots()) body(cpu::dots_avx512, cpu::kernels_avx512);
  if (has_tiles()) body(cpu::tiles_amx, cpu::kernels_avx512);
#endif
  if (!emulated) return;
  body(cpu::dots_emulated, cpu::kernels_baseline);
  body(cpu::tiles_emulated, cpu::kernels_baseline);
}

void check_size(int64_t T, int64_t B, int64_t H, bool emulated) {
  for (const CellInfo& cell : kCells) {
    for (const Option& option : kOptions) {
      const bool slow = emulated && (&option == kOptions || option.resets);
      each_set(slow, [&](const auto& kernels, const cpu::Kernels& set) {
        check_scan(kernels, set, cell.id, T, B, H, option);
      });
    }
  }
}

// A product with rows of x, of which W is [N, K] as the input's weights are, or [K, N] as they are
// for gradients of the input.
template <class X, class D>
Buffer<float> check_product(const cpu::NarrowKernels<X, D>& kernels, const cpu::Kernels& set,
                            int64_t M, bool turned) {
  constexpr int64_t N = 75, K = 301;  // two blocks of steps, the last of an odd number
  Random random(5);
  const Tensor<X> a(random.vector(M * K, 1)), b(random.vector(K * N, 1)), row(random.vector(N, 1));
  const Numbers left = a.numbers(), right = b.numbers(), bias = row.numbers();
  Tensor<X> a_copy = a, b_copy = b, row_copy = row;
  Buffer<float> found(M * N);
  cpu::Gemm<X> g;
  g.M = M, g.N = N, g.K = K;
  g.a = a_copy.data(), g.a_row = K, g.a_column = 1;
  g.b = b_copy.data(), g.b_row = turned ? 1 : N, g.b_column = turned ? K : 1;
  g.c = found.data(), g.c_row = N, g.row = row_copy.data();
  Workspace room(set.gemm_room(sizeof(float)));
  g.workspace = room.data();
  kernels.gemm(g);
  CHECK(found.intact() && room.intact());
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double sum = bias[n];
      for (int64_t k = 0; k < K; ++k)
        sum += left[m * K + k] * right[turned ? n * K + k : k * N + n];
      CHECK_NEAR(found[m * N + n], sum, 1e-5);
    }
  }
  return found;
}

// The input's product made by the loop, against a scan that is given it, and the input's gradient,
// against the large product: the same bits.
template <class X, class D>
void check_input(const cpu::NarrowKernels<X, D>& kernels, const cpu::Kernels& set, int64_t B) {
  constexpr int64_t T = 5, I = 301, H = 9;
  Inputs in = inputs<X>(CellId::kLstm, T, B, H, kOptions[2]);
  const int64_t columns = in.p.gate_width();
  Random random(9);
  GivenInput<X> given{Tensor<X>(random.vector(T * B * I, 1)),
                      Tensor<X>(random.vector(columns * I, 0.1)),
                      Tensor<X>(random.vector(columns, 1)), I};
  Buffer<float> gates(T * B * columns);
  cpu::Gemm<X> g;
  g.M = T * B, g.N = columns, g.K = I;
  g.a = given.x.data(), g.a_row = I, g.a_column = 1;
  g.b = given.w_ih.data(), g.b_row = 1, g.b_column = I;
  g.c = gates.data(), g.c_row = columns, g.row = given.b_ih.data();
  Workspace room(set.gemm_room(sizeof(float)));
  g.workspace = room.data();
  kernels.gemm(g);
  in.gx = numbers_of(gates);
  const auto outputs = [](const NarrowRun<X, D>& run) {
    return std::vector<Numbers>{run.y.numbers(), run.h_last.numbers(), run.c_last.numbers()};
  };
  const auto expected = outputs(NarrowRun<X, D>(kernels, set, in, {1, 1}, false));
  for (const int rows : {1, 2, 3}) {
    CHECK_IN(same(outputs(NarrowRun<X, D>(kernels, set, in, {rows, 1}, false, &given)), expected),
             in.label());
    NarrowRun<X, D> trained(kernels, set, in, {rows, 1}, true, &given);
    const Numbers dx = large_product(set, kernels.gemm_back, trained.dgx.data(), given.w_ih.data(),
                                     T * B, columns, I);
    CHECK_IN(same({numbers_of(trained.dx)}, {dx}), in.label());
  }
}

// Gradients [T·B, M] times x, and times the states of the step before.
template <class X, class D>
void check_sums(const cpu::NarrowKernels<X, D>& kernels, int64_t T, int64_t B, int64_t M,
                int64_t groups = 1) {
  constexpr int64_t I = 19, H = 50;
  Random random(6);
  const Tensor<X> x(random.vector(T * B * I, 1)), y(random.vector(T * B * H, 1));
  const Tensor<X> h0(random.vector(B * H, 1));
  Gradients<X, D> d(random.vector(T * B * M, 1));
  Tensor<X> x_copy = x, y_copy = y, h0_copy = h0;
  std::vector<float> of_x(groups * M * I), of_h(groups * M * H), bias(groups * M);
  cpu::Sums<D, X> sums;
  sums.T = T, sums.B = B, sums.operand_count = 2, sums.gradient_count = 1;
  sums.groups = groups > 1 ? groups : 0;
  sums.operands[0] = {I, {{x_copy.data(), B * I, I, nullptr}}};
  sums.operands[1] = {H, {{y_copy.data(), B * H, H, h0_copy.data()}}};
  auto& gradients = sums.gradients[0];
  gradients.terms[0] = {d.data(), M}, gradients.M = M;
  gradients.products[0] = {of_x.data(), I, M * I};
  gradients.products[1] = {of_h.data(), H, M * H};
  gradients.biases[0] = bias.data(), gradients.bias_group = M;
  Workspace room(kernels.sums_room(sums));
  sums.workspace = room.data();
  kernels.sums(sums);
  CHECK(room.intact());
  const Numbers dn = numbers_of(d), xn = x.numbers(), yn = y.numbers(), hn = h0.numbers();
  const int64_t size = B / groups;
  for (int64_t m = 0; m < groups * M; ++m) {
    Numbers a(I), b(H);
    double total = 0;
    for (int64_t k = 0; k < T * B; ++k) {
      if (k % B / size != m / M) continue;
      const double* h = k < B ? &hn[k * H] : &yn[(k - B) * H];
      const double gradient = dn[k * M + m % M];
      for (int64_t i = 0; i < I; ++i) a[i] += gradient * xn[k * I + i];
      for (int64_t j = 0; j < H; ++j) b[j] += gradient * h[j];
      total += gradient;
    }
    const double tolerance = 1e-6 * std::sqrt(double(T * B));
    for (int64_t i = 0; i < I; ++i) CHECK_NEAR(of_x[m * I + i], a[i], tolerance);
    for (int64_t j = 0; j < H; ++j) CHECK_NEAR(of_h[m * H + j], b[j], tolerance);
    CHECK_NEAR(bias[m], total, tolerance);
  }
}

// The instruction's numbers as they are documented, of one lane.
float documented(float sum, uint32_t x, uint32_t w) {
  const auto flushed = [](float v) {
    return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.f, v) : v;
  };
  const auto step = [&](float to, uint32_t a, uint32_t b) {
    float left, right;
    std::memcpy(&left, &a, 4), std::memcpy(&right, &b, 4);
    return flushed(std::fma(flushed(left), flushed(right), flushed(to)));
  };
  sum = step(sum, x & 0xffff0000u, w & 0xffff0000u);
  return step(sum, x << 16, w << 16);
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) float by_instruction(float sum, uint32_t x,
                                                                   uint32_t w) {
  const __m512i a = _mm512_set1_epi32(int(x)), b = _mm512_set1_epi32(int(w));
  return _mm512_cvtss_f32(_mm512_dpbf16_ps(_mm512_set1_ps(sum), (__m512bh)a, (__m512bh)b));
}
#endif

// Any bits, and every other time exponents near one another, so that roundings meet.
uint32_t some_bits(Random& random, bool near, uint32_t exponents) {
  const uint32_t bits = uint32_t(random.integer(1 << 16)) << 16 | uint32_t(random.integer(1 << 16));
  return near ? (bits & ~exponents) | (bits & exponents & 0x07800780u) | (0x38003800u & exponents)
              : bits;
}

}  // namespace

TEST(less_than_a_vector) { check_size(3, 5, 5, true); }
TEST(one_sequence) { check_size(2, 1, 37, true); }
TEST(whole_vectors_and_a_rest) { check_size(3, 9, 70, false); }

TEST(products) {
  each_set(true, [](const auto& kernels, const cpu::Kernels& set) {
    for (const bool turned : {false, true}) {
      for (const int64_t M : {13, 16, 45}) check_product(kernels, set, M, turned);
    }
  });
}

TEST(inputs_made_by_the_loop) {
  each_set(true, [](const auto& kernels, const cpu::Kernels& set) {
    for (const int64_t B : {3, 17, 50}) check_input(kernels, set, B);
  });
}

TEST(scans_by_tiles) {
  for (const CellInfo& cell : kCells) {
    check_scan(cpu::tiles_emulated, cpu::kernels_baseline, cell.id, 3, 17, 37, kOptions[0]);
    check_scan(cpu::tiles_emulated, cpu::kernels_baseline, cell.id, 2, 37, 19, kOptions[5]);
#if defined(__x86_64__)
    if (!has_tiles()) continue;
    for (const Option& option : kOptions) {
      check_scan(cpu::tiles_amx, cpu::kernels_avx512, cell.id, 3, 17, 37, option);
      check_scan(cpu::tiles_amx, cpu::kernels_avx512, cell.id, 3, 50, 70, option);
    }
#endif
  }
}

// A product is but sums, so vectors' widths make no difference.
TEST(products_by_tiles_are_those_of_their_emulation) {
#if defined(__x86_64__)
  if (!has_tiles()) return;
  for (const int64_t M : {16, 45}) {
    const auto emulated = check_product(cpu::tiles_emulated, cpu::kernels_baseline, M, false);
    CHECK(check_product(cpu::tiles_amx, cpu::kernels_avx512, M, false).same_bits(emulated));
  }
#endif
}

TEST(sums) {
  each_set(true, [](const auto& kernels, const cpu::Kernels&) {
    check_sums(kernels, 5, 3, 21);   // an odd number of steps
    check_sums(kernels, 700, 3, 9);  // in chunks
    check_sums(kernels, 700, 3, 37);
    check_sums(kernels, 23, 6, 37, 2);
  });
}

TEST(dot_products_are_emulated_bit_by_bit) {
  Random random(7);
  for (int n = 0; n < 400000; ++n) {
    const uint32_t x = some_bits(random, n % 2, 0x7f807f80u),
                   w = some_bits(random, n % 2, 0x7f807f80u);
    const uint32_t s = some_bits(random, n % 2, 0x7f800000u);
    float sum;
    std::memcpy(&sum, &s, sizeof(sum));
    using Native = emulated::Vec<float>::Native;
    const auto all = [](uint32_t v) { return (Native)(emulated::Unsigned{} + v); };
    const float found = emulated::emulated_dot(all(s), all(x), all(w))[n % 4];
    const float expected = documented(sum, x, w);
    const bool same =
        bits_of(found) == bits_of(expected) || (std::isnan(found) && std::isnan(expected));
    if (!same) CHECK_IN(same, check::show(found) + " against " + check::show(expected));
#if defined(__x86_64__)
    if (!has_dots()) continue;
    const float made = by_instruction(sum, x, w);
    const bool real = bits_of(found) == bits_of(made) || (std::isnan(found) && std::isnan(made));
    if (!real) CHECK_IN(real, check::show(found) + " against the processor's " + check::show(made));
#endif
  }
}

// What is beside the instruction is the same in both, but for vectors' widths: a last bit differs. So
// it does where tiles add in another order.
void check_alike(const cpu::NarrowKernels<BFloat16, BFloat16>& one, const cpu::Kernels& its_set,
                 const cpu::NarrowKernels<BFloat16, BFloat16>& other, const cpu::Kernels& set,
                 int64_t B) {
  for (const CellInfo& cell : kCells) {
    const Inputs in = inputs<BFloat16>(cell.id, 4, B, 35, kOptions[0]);
    using Pairs = NarrowRun<BFloat16, BFloat16>;
    const auto left = Pairs(one, its_set, in, {1, 1}, true).all();
    const auto right = Pairs(other, set, in, {1, 1}, true).all();
    for (size_t k = 0; k < left.size(); ++k) {
      double scale = 1e-3;
      for (const double x : right[k]) scale = std::fmax(scale, std::fabs(x));
      for (size_t i = 0; i < right[k].size(); ++i)
        if (std::fabs(left[k][i] - right[k][i]) > 0x1p-7 * scale) CHECK_IN(false, in.label());
    }
  }
}

TEST(emulated_scans_are_those_of_the_processor) {
  check_alike(cpu::tiles_emulated, cpu::kernels_baseline, cpu::dots_emulated, cpu::kernels_baseline,
              18);
#if defined(__x86_64__)
  if (!has_dots()) return;
  check_alike(cpu::dots_emulated, cpu::kernels_baseline, cpu::dots_avx512, cpu::kernels_avx512, 6);
  if (!has_tiles()) return;
  check_alike(cpu::tiles_emulated, cpu::kernels_baseline, cpu::tiles_amx, cpu::kernels_avx512, 18);
#endif
}

// All numbers of either format, and numbers between them, in the way that every processor has.
template <class X>
void check_conversions() {
  constexpr int L = emulated::Vec<float>::kLanes;
  for (int first = 0; first < 1 << 16; first += L) {
    X from[L], back[L];
    for (int i = 0; i < L; ++i) from[i].bits = uint16_t(first + i);
    const emulated::Vec<float> found = emulated::read(from);
    emulated::write(found, back);
    for (int i = 0; i < L; ++i) {
      const double expected = wide(from[i]);
      const bool nan = std::isnan(expected);
      CHECK(nan ? std::isnan(found.v[i]) : bits_of(found.v[i]) == bits_of(float(expected)));
      CHECK(nan ? std::isnan(wide(back[i])) : back[i].bits == from[i].bits);
    }
  }
  Random random(3);
  for (int n = 0; n < 200000; ++n) {
    float values[L];
    X found[L];
    for (float& value : values) {
      value = float(std::ldexp(random.uniform(-1, 1), int(random.integer(60)) - 40));
      if (n % 3 == 0) {  // ties
        const X near = narrow<X>(value);
        X next = near;
        ++next.bits;
        value = float((wide(near) + wide(next)) / 2);
      }
    }
    emulated::write(emulated::Vec<float>::load(values), found);
    for (int i = 0; i < L; ++i) {
      const bool same = found[i].bits == narrow<X>(values[i]).bits;
      if (!same) CHECK_IN(same, check::show(values[i]));
    }
  }
}

TEST(bfloat16_is_rounded_to_nearest_even) { check_conversions<BFloat16>(); }
TEST(float16_is_rounded_to_nearest_even) { check_conversions<Half>(); }
