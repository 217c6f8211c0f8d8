// The product of large matrices against sums in double: odd sizes, both ways that each matrix can
// lie in memory, every way of beginning, and any number of threads with the same bits.
#include "cpu_scan.h"

namespace {

using namespace cpu_scan;

struct Sizes {
  int64_t M, N, K;
};

enum class Begin { kZero, kRow, kAdd };

// Where element (i, j) of an m × n matrix lies.
struct Layout {
  int64_t row, column;
  Layout(int64_t m, int64_t n, bool turned, int64_t gap)
      : row(turned ? 1 : n + gap), column(turned ? m + gap : 1) {}
  int64_t at(int64_t i, int64_t j) const { return i * row + j * column; }
  int64_t size(int64_t m, int64_t n) const { return m * n == 0 ? 0 : at(m - 1, n - 1) + 1; }
};

template <class S>
struct Case {
  Sizes s;
  Layout a, b;
  Begin begin;
  Buffer<S> left, right, row, old;

  Case(Sizes sizes, bool a_turned, bool b_turned, Begin how, Random& random)
      : s(sizes),
        a(s.M, s.K, a_turned, 3),
        b(s.K, s.N, b_turned, 1),
        begin(how),
        left(random.vector(a.size(s.M, s.K), 1)),
        right(random.vector(b.size(s.K, s.N), 1)),
        row(random.vector(s.N, 1)),
        old(random.vector(s.M * s.N, 1)) {}

  Buffer<S> run(const cpu::Kernels& kernels, int rows, int columns) {
    Buffer<S> c = begin == Begin::kAdd ? old : Buffer<S>(s.M * s.N);
    cpu::Gemm<S> g;
    g.M = s.M, g.N = s.N, g.K = s.K;
    g.a = left.data(), g.a_row = a.row, g.a_column = a.column;
    g.b = right.data(), g.b_row = b.row, g.b_column = b.column;
    g.c = c.data(), g.c_row = s.N;
    g.add = begin == Begin::kAdd;
    g.row = begin == Begin::kRow ? row.data() : nullptr;
    g.split = {rows, columns};
    std::vector<char> room(kernels.gemm_room(sizeof(S)) * rows * columns + 64);
    g.workspace =
        reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(room.data()) + 63) & ~uintptr_t(63));
    std::fill(room.begin(), room.end(), char(-1));  // NaN
    if constexpr (std::is_same_v<S, float>) {
      kernels.gemm_f32(g);
    } else {
      kernels.gemm_f64(g);
    }
    return c;
  }

  double expected(int64_t i, int64_t j) {
    double sum = begin == Begin::kAdd ? old[i * s.N + j] : begin == Begin::kRow ? row[j] : S(0);
    for (int64_t k = 0; k < s.K; ++k) sum += double(left[a.at(i, k)]) * right[b.at(k, j)];
    return sum;
  }

  std::string label(const cpu::Kernels& kernels) const {
    return std::string(kernels.isa) + " " + std::to_string(s.M) + "x" + std::to_string(s.K) + "x" +
           std::to_string(s.N) + " strides " + std::to_string(a.row) + "," +
           std::to_string(a.column) + " " + std::to_string(b.row) + "," + std::to_string(b.column) +
           " begin " + std::to_string(int(begin));
  }
};

template <class S>
void check(Sizes sizes, bool a_turned, bool b_turned, Begin begin, Random& random) {
  Case<S> c(sizes, a_turned, b_turned, begin, random);
  const double eps = std::numeric_limits<S>::epsilon();
  for (const cpu::Kernels* kernels : present()) {
    const Buffer<S> alone = c.run(*kernels, 1, 1);
    CHECK_IN(alone.intact(), c.label(*kernels));
    for (int64_t i = 0; i < sizes.M; ++i) {
      for (int64_t j = 0; j < sizes.N; ++j) {
        const double off = std::fabs(alone[i * sizes.N + j] - c.expected(i, j));
        const bool near = off <= eps * (4 + double(sizes.K) / 2);
        if (!near) CHECK_IN(near, c.label(*kernels) + " off by " + check::show(off));
      }
    }
    for (const auto& [rows, columns] : {std::pair{2, 1}, {1, 3}, {3, 2}}) {
      CHECK_IN(c.run(*kernels, rows, columns).same_bits(alone), c.label(*kernels));
    }
  }
}

TEST(is_the_sum) {
  Random random(7);
  const Sizes sizes[] = {{1, 1, 1},  {4, 24, 8},   {5, 25, 9},   {13, 50, 31}, {7, 3, 400},
                         {3, 97, 2}, {200, 11, 5}, {2, 1000, 3}, {6, 49, 800}};
  for (const Sizes& s : sizes) {
    for (const bool a_turned : {false, true}) {
      for (const bool b_turned : {false, true}) {
        for (const Begin begin : {Begin::kZero, Begin::kRow, Begin::kAdd}) {
          check<float>(s, a_turned, b_turned, begin, random);
          check<double>(s, a_turned, b_turned, begin, random);
        }
      }
    }
  }
}

TEST(of_nothing) {
  Random random(8);
  for (const Sizes& s : {Sizes{3, 5, 0}, {0, 5, 2}, {3, 0, 2}}) {
    for (const Begin begin : {Begin::kZero, Begin::kRow, Begin::kAdd}) {
      check<float>(s, false, false, begin, random);
      check<double>(s, true, true, begin, random);
    }
  }
}

TEST(a_nan_stays_in_its_row_and_column) {
  Random random(9);
  Case<float> c({9, 30, 20}, true, false, Begin::kZero, random);
  c.left.data()[c.a.at(4, 7)] = static_cast<float>(kNaN);
  for (const cpu::Kernels* kernels : present()) {
    const Buffer<float> found = c.run(*kernels, 1, 1);
    for (int64_t i = 0; i < 9; ++i) {
      for (int64_t j = 0; j < 30; ++j) {
        CHECK_IN(std::isnan(found[i * 30 + j]) == (i == 4), c.label(*kernels));
      }
    }
  }
}

}  // namespace
