// Products of bfloat16 by tiles (AMX): their numbers by plain C++, as Intel's manual has them; the
// blocking that the processor's own run through, on these; and when a processor's are used. Whole
// scans by tiles are in test_narrow.cpp.
#include "check.h"
#include "cpu/kernels.h"
#include "random.h"

#define RNNFAST_ISA emulated_tiles
#define RNNFAST_VECTOR_BYTES 16
#define RNNFAST_DOTS 1
#define RNNFAST_TILES 1
#define RNNFAST_DOTS_NAME tiles_emulated
namespace rnnfast::cpu {
extern const NarrowKernels<BFloat16, BFloat16> tiles_emulated;
}
#include <array>
#include <cstring>

#include "cpu/capability.h"
#include "cpu/kernels.inc"
#include "cpu/tile_check.h"

namespace {

using namespace rnnfast;
using namespace rnnfast::cpu::emulated_tiles;
using cpu::BFloat16;
using cpu::Processor;

constexpr int L = Vec<float>::kLanes;

float value_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
float flushed(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.f, v) : v; }

// One element of TDPBF16PS as it is documented.
float documented(float sum, const std::vector<uint32_t>& x, const std::vector<uint32_t>& w) {
  float temp[2] = {0, 0};
  for (size_t k = 0; k < x.size(); ++k) {
    for (const int second : {0, 1}) {
      const auto part = [&](uint32_t pair) {
        return flushed(value_of(second ? pair & 0xffff0000u : pair << 16));
      };
      temp[second] = flushed(std::fma(part(x[k]), part(w[k]), temp[second]));
    }
  }
  return flushed(flushed(sum) + flushed(temp[0] + temp[1]));
}

// Any bits, or, every other time, exponents near one another.
uint32_t some_pair(Random& random, bool near) {
  const uint32_t bits = uint32_t(random.integer(1 << 16)) << 16 | uint32_t(random.integer(1 << 16));
  return near ? (bits & 0x807f807fu) | (bits & 0x07800780u) | 0x38003800u : bits;
}

// Of each tile that is stored one bit is another.
struct OtherTiles : EmulatedTiles {
  template <int tile>
  void store(void* to, int64_t step) {
    EmulatedTiles::store<tile>(to, step);
    static_cast<float*>(to)[L - 1] = value_of(bits_of(static_cast<float*>(to)[L - 1]) ^ 1);
  }
};

// One segment of K steps, n rows and a panel of two vectors, of numbers near 1.
struct Block {
  static constexpr int NV = 2;
  int64_t n, K;
  std::vector<BFloat16> x;
  std::vector<Pair> panel;
  std::vector<float> bias;

  Block(int64_t rows, int64_t steps)
      : n(rows), K(steps), x(rows * (steps + 3)), panel((steps + 1) / 2 * NV * L), bias(NV * L) {
    Random random(static_cast<uint32_t>(steps));
    for (BFloat16& v : x) v.bits = bits_of(float(random.uniform(-1, 1))) >> 16;
    for (Pair& pair : panel) {
      pair = bits_of(float(random.uniform(-1, 1))) >> 16;
      pair |= bits_of(float(random.uniform(-1, 1))) & 0xffff0000u;
    }
    for (float& v : bias) v = float(random.uniform(-1, 1));
    for (int64_t r = 0; r < rows; ++r) {  // what lies behind a row is not multiplied
      for (int64_t k = steps; k < steps + 3; ++k) x[r * (steps + 3) + k].bits = 0x7fc0;
    }
    for (int c = 0; c < NV * L && steps % 2 != 0; ++c) panel[steps / 2 * NV * L + c] &= 0xffffu;
  }

  // Of rows in an order, [row][column].
  std::vector<float> sums(const std::vector<int64_t>& order) const {
    const BFloat16* rows[kTileRows];
    for (size_t r = 0; r < order.size(); ++r) rows[r] = x.data() + order[r] * (K + 3);
    alignas(64) float found[kTileRows * NV * L];
    const int64_t count = static_cast<int64_t>(order.size());
    TileProduct<EmulatedTiles> product;
    poison(product);
    product.run<NV, 1>({{rows, K}}, 0, count, panel.data(), bias.data(), found);
    return {found, found + count * NV * L};
  }

  // So that of what is gathered later nothing but what was written is read.
  static void poison(TileProduct<EmulatedTiles>& product) {
    const std::vector<BFloat16> nan((kTileRows + 1) * kTileSteps, BFloat16{0x7fc0});
    const std::vector<Pair> nothing(kTilePairs * NV * L);
    const BFloat16* rows[kTileRows];
    for (int r = 0; r < kTileRows; ++r) rows[r] = nan.data() + r * kTileSteps + (r > 1);
    float found[kTileRows * NV * L];
    product.run<NV, 1>({{rows, kTileSteps}}, 0, kTileRows, nothing.data(), nullptr, found);
  }

  double exact(int64_t row, int column) const {
    double sum = bias[column];
    for (int64_t k = 0; k < K; ++k) {
      const Pair pair = panel[k / 2 * NV * L + column];
      sum += double(value_of(uint32_t(x[row * (K + 3) + k].bits) << 16)) *
             value_of(k % 2 ? pair & 0xffff0000u : pair << 16);
    }
    return sum;
  }
};

// A processor that has AMX, as it is described.
Processor with_amx(bool compiled, bool may, bool right) {
  Processor p;
  p.avx2 = p.avx512 = p.avx512_bf16 = p.amx = true;
  p.compiled_tiles = compiled;
  p.may_use_tiles = may ? [] { return true; } : [] { return false; };
  p.right_tiles = right ? [] { return true; } : [] { return false; };
  return p;
}

std::string error_of(const std::string& asked, const Processor& processor) {
  try {
    cpu::choose(asked, processor);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST(the_instruction_is_emulated_as_documented) {
  Random random(11);
  for (int n = 0; n < 3000; ++n) {
    const int pairs = 1 + int(random.integer(kTilePairs)),
              rows = 1 + int(random.integer(kTileRows));
    TileShapes shapes;
    shapes.rows[0] = shapes.rows[1] = uint8_t(rows), shapes.rows[2] = uint8_t(pairs);
    shapes.row_bytes[0] = shapes.row_bytes[2] = 4 * L, shapes.row_bytes[1] = uint16_t(4 * pairs);
    Pair x[kTileRows][kTilePairs], w[kTilePairs][L];
    float sums[kTileRows][L], begin[kTileRows][L];
    for (auto& row : x) {
      for (Pair& pair : row) pair = some_pair(random, n % 2);
    }
    for (auto& row : w) {
      for (Pair& pair : row) pair = some_pair(random, n % 2);
    }
    for (auto& row : begin) {
      for (float& v : row) v = value_of(some_pair(random, n % 2));
    }
    EmulatedTiles tiles;
    tiles.shape(shapes);
    tiles.load<0>(begin, sizeof(begin[0])), tiles.load<1>(x, sizeof(x[0]));
    tiles.load<2>(w, sizeof(w[0]));
    tiles.multiply<0, 1, 2>();
    tiles.store<0>(sums, sizeof(sums[0]));
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < L; ++c) {
        std::vector<uint32_t> left(x[r], x[r] + pairs), right;
        for (int k = 0; k < pairs; ++k) right.push_back(w[k][c]);
        const float expected = documented(begin[r][c], left, right), found = sums[r][c];
        const bool same =
            bits_of(found) == bits_of(expected) || (std::isnan(found) && std::isnan(expected));
        if (!same) CHECK_IN(same, check::show(found) + " against " + check::show(expected));
      }
    }
  }
}

TEST(sums_of_any_steps_and_rows) {
  for (const int64_t K : {1, 2, 31, 32, 33, 64, 75, 256}) {
    for (const int64_t n : {1, 2, 7, 16}) {
      const Block block(n, K);
      std::vector<int64_t> order(n);
      for (int64_t r = 0; r < n; ++r) order[r] = r;
      const std::vector<float> together = block.sums(order);
      for (int64_t r = 0; r < n; ++r) {
        for (int c = 0; c < Block::NV * L; ++c)
          CHECK_NEAR(together[r * Block::NV * L + c], block.exact(r, c), 1e-6 * std::sqrt(K));
        const std::vector<float> alone = block.sums({r});
        CHECK(std::memcmp(alone.data(), &together[r * Block::NV * L],
                          alone.size() * sizeof(float)) == 0);
      }
      // rows that do not lie at one distance
      order.insert(order.begin(), n - 1), order.pop_back();
      const std::vector<float> uneven = block.sums(order);
      for (int64_t r = 0; r < n; ++r) {
        CHECK(std::memcmp(&uneven[r * Block::NV * L], &together[order[r] * Block::NV * L],
                          Block::NV * L * sizeof(float)) == 0);
      }
    }
  }
}

TEST(another_bit_is_noticed) {
  const bool same = same_numbers<EmulatedTiles, EmulatedTiles>();
  const bool other = same_numbers<EmulatedTiles, OtherTiles>();
  CHECK(same && !other);
}

#if defined(__x86_64__)
TEST(tiles_are_used_where_the_system_lets_and_the_numbers_are_right) {
  const Processor whole = with_amx(true, true, true);
  for (const char* name : {"", "amx"}) {
    const cpu::Kernels used = cpu::choose(name, whole);
    CHECK(used.tiles && used.dots == &cpu::tiles_amx && used.why_no_tiles == nullptr);
  }
  const cpu::Kernels asked = cpu::choose("avx512_bf16", whole);
  CHECK(!asked.tiles && asked.dots == &cpu::dots_avx512 && asked.why_no_tiles == nullptr);
  std::string reasons;
  for (const Processor& p :
       {with_amx(false, true, true), with_amx(true, false, true), with_amx(true, true, false)}) {
    const cpu::Kernels next = cpu::choose("", p);
    CHECK(!next.tiles && next.dots == &cpu::dots_avx512);
    const std::string why = next.why_no_tiles ? next.why_no_tiles : "";
    CHECK(!why.empty() && reasons.find(why) == std::string::npos);
    CHECK(error_of("amx", p) == "RNNFAST_CPU_CAPABILITY=amx: " + why);
    reasons += why;
  }
  Processor without = whole;
  without.amx = false;
  CHECK(cpu::choose("", without).dots == &cpu::dots_avx512);
  CHECK(cpu::choose("", without).why_no_tiles == nullptr);
  CHECK(error_of("amx", without) == "RNNFAST_CPU_CAPABILITY=amx: this processor has no amx");
  CHECK(cpu::choose("", Processor()).isa == std::string("baseline"));
}
#endif
