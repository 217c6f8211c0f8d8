// The matrix products against plain loops, fragments packed by the formulas of the PTX ISA (the
// figures of mma.m16n8k16 with .bf16 and .f16 and of mma.m16n8k8 with .tf32): element i of a lane's
// fragment.
#include <cstring>
#include <functional>

#include "random.h"
#include "toys.h"

namespace {

using namespace toys;

struct Place {
  int row, column;
};

Place a_16bit(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  const bool upper = i < 2 || (4 <= i && i < 6);
  return {upper ? group : group + 8, in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
Place b_16bit(int lane, int i) { return {lane % 4 * 2 + (i & 1) + (i >= 2 ? 8 : 0), lane >> 2}; }
Place a_tf32(int lane, int i) {
  return {(lane >> 2) + (i == 1 || i == 3 ? 8 : 0), lane % 4 + (i >= 2 ? 4 : 0)};
}
Place b_tf32(int lane, int i) { return {lane % 4 + (i == 1 ? 4 : 0), lane >> 2}; }
Place c_any(int lane, int i) { return {(lane >> 2) + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)}; }

struct MmaArgs {
  const uint32_t* a;  // [32, 4]
  const uint32_t* b;  // [32, 2]
  float* d;           // [32, 4]
};

enum class Kind { kBf16, kF16, kTf32 };

template <Kind kKind>
RNNFAST_KERNEL(32)
multiply(RNNFAST_ARGS MmaArgs args) {
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = load(args.a + 4 * lane() + i);
  for (int i = 0; i < 2; ++i) b[i] = load(args.b + 2 * lane() + i);
  for (int i = 0; i < 4; ++i) d[i] = load(args.d + 4 * lane() + i);
  if constexpr (kKind == Kind::kBf16) mma_bf16(d, a, b);
  if constexpr (kKind == Kind::kF16) mma_f16(d, a, b);
  if constexpr (kKind == Kind::kTf32) mma_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) store(args.d + 4 * lane() + i, d[i]);
}

struct Product {
  std::vector<uint32_t> a = std::vector<uint32_t>(128), b = std::vector<uint32_t>(64);
  std::vector<float> d = std::vector<float>(128);
  double expected[16][8];
};

template <class S>
Product product_16bit(uint32_t seed) {
  Random random(seed);
  S a[16][16], b[16][8];
  for (auto& row : a)
    for (S& value : row) value = from_float<S>(static_cast<float>(random.uniform(-2, 2)));
  for (auto& row : b)
    for (S& value : row) value = from_float<S>(static_cast<float>(random.uniform(-2, 2)));
  Product p;
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 8; ++i) {
      const Place at = a_16bit(l, i);
      p.a[4 * l + i / 2] |= uint32_t{a[at.row][at.column].bits} << 16 * (i % 2);
    }
    for (int i = 0; i < 4; ++i) {
      const Place at = b_16bit(l, i);
      p.b[2 * l + i / 2] |= uint32_t{b[at.row][at.column].bits} << 16 * (i % 2);
    }
    for (int i = 0; i < 4; ++i) p.d[4 * l + i] = static_cast<float>(random.uniform(-1, 1));
  }
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      const Place at = c_any(l, i);
      double sum = p.d[4 * l + i];
      for (int k = 0; k < 16; ++k)
        sum += double{to_float(a[at.row][k])} * to_float(b[k][at.column]);
      p.expected[at.row][at.column] = sum;
    }
  }
  return p;
}

Product product_tf32(uint32_t seed, bool rounded) {
  Random random(seed);
  float a[16][8], b[8][8];
  const auto draw = [&] {
    const float value = static_cast<float>(random.uniform(-2, 2));
    return rounded ? float_of(to_tf32(value)) : value;
  };
  for (auto& row : a)
    for (float& value : row) value = draw();
  for (auto& row : b)
    for (float& value : row) value = draw();
  Product p;
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) p.a[4 * l + i] = bits_of(a[a_tf32(l, i).row][a_tf32(l, i).column]);
    for (int i = 0; i < 2; ++i) p.b[2 * l + i] = bits_of(b[b_tf32(l, i).row][b_tf32(l, i).column]);
    for (int i = 0; i < 4; ++i) p.d[4 * l + i] = static_cast<float>(random.uniform(-1, 1));
    for (int i = 0; i < 4; ++i) {
      const Place at = c_any(l, i);
      double sum = p.d[4 * l + i];
      for (int k = 0; k < 8; ++k) sum += double{a[at.row][k]} * b[k][at.column];
      p.expected[at.row][at.column] = sum;
    }
  }
  return p;
}

template <Kind kKind>
void run(Product& p) {
  launch<MmaArgs>({"multiply", 1, 1, 32, 0, false}, multiply<kKind>,
                  {p.a.data(), p.b.data(), p.d.data()}, nullptr);
}

// 16 products of at most 4 each, rounded to 2^-24 of the sum so far.
template <Kind kKind>
void check_product(Product p) {
  run<kKind>(p);
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      const Place at = c_any(l, i);
      CHECK_NEAR(p.d[4 * l + i], p.expected[at.row][at.column], 16 * 64 * 0x1p-24);
    }
  }
}

TEST(products_are_right_where_the_ptx_figures_put_them) {
  uint32_t seed = 0;
  under_schedules([&] {
    check_product<Kind::kBf16>(product_16bit<Bf16>(++seed));
    check_product<Kind::kF16>(product_16bit<F16>(++seed));
    check_product<Kind::kTf32>(product_tf32(++seed, true));
  });
}

FAULT_TEST(a_missing_cvt_to_tf32_is_caught) {
  CHECK_FAILS(
      [] {
        Product p = product_tf32(1, false);
        run<Kind::kTf32>(p);
      },
      "is no tf32 number: to_tf32 is missing");
}

TEST(poison_spreads_to_its_row_only) {
  Product p = product_16bit<Bf16>(3);
  p.a[4 * 4 * 5] = 0xFFFFFFFFu;  // group 5, register 0: row 5
  run<Kind::kBf16>(p);
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) CHECK((p.d[4 * l + i] != p.d[4 * l + i]) == (c_any(l, i).row == 5));
  }
  Product q = product_tf32(4, true);
  q.b[2 * 4 * 6] = 0xFFFFFFFFu;  // column 6
  run<Kind::kTf32>(q);
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i)
      CHECK((q.d[4 * l + i] != q.d[4 * l + i]) == (c_any(l, i).column == 6));
  }
}

}  // namespace
