// Products of pairs of bfloat16 by tiles (tiles.h): up to 16 rows times a panel or a strip as it was
// packed for dot products, whose steps are a tile's rows.
//
// Of the eight tiles up to four hold sums, one for each vector of the panel. One has 32 steps of the
// rows, one as many of a vector of weights; two more, of another shape, what is left of the steps.
// Each output is the sum over 32 steps at a time in order, whatever the number of rows, so results
// do not depend on how work is split; but they are not the bits of dot products.
#pragma once

#include "cpu/panel.h"
#include "cpu/tiles.h"
#include "cpu/unrolled.h"

namespace rnnfast::cpu::RNNFAST_ISA {

// Whether a product is made by tiles. `rows`: of all of it, so that threads, which have parts, do as
// one does alone. With fewer rows than a tile's there is little to win, and steps of one sequence
// would lose the two panels at once that dot products have.
template <class E>
constexpr bool by_tiles(int64_t rows) {
  return RNNFAST_TILES && std::is_same_v<E, BFloat16> && rows >= kTileRows;
}

template <class Tiles>
class TileProduct {
  static constexpr int L = Vec<float>::kLanes;
  enum { kRows = 4, kWeights, kRestRows, kRestWeights };  // sums are 0 … 3

 public:
  // sums[r][j][lane] of `rows` rows, up to 16, from `first` on: `bias`, or 0, plus the segments.
  template <int NV, int N>
  __attribute__((noinline)) void run(const Segment<BFloat16> (&segments)[N], int64_t first,
                                     int64_t rows, const Pair* panel, const float* bias,
                                     float* sums) {
    static_assert(NV <= kRows, "a tile for each vector");
    for (int64_t r = 0; r < rows; ++r) {
      for (int j = 0; j < NV; ++j) {
        const Vec<float> begin = bias ? Vec<float>::load(bias + j * L) : Vec<float>(0.f);
        begin.store(sums + (r * NV + j) * L);
      }
    }
    for (const Segment<BFloat16>& segment : segments) {
      add<NV>(segment, segment.rows + first, rows, panel, sums);
      panel += packed_steps<BFloat16>(segment.K) * NV * L;
    }
  }

 private:
  template <int NV>
  void add(const Segment<BFloat16>& segment, const BFloat16* const* rows, int64_t n,
           const Pair* panel, float* sums) {
    constexpr int64_t kLine = NV * L * sizeof(float);  // bytes of a row of sums, or of the panel
    const int64_t whole = segment.K / kTileSteps * kTileSteps, rest = segment.K - whole;
    const int64_t spacing = spacing_of(rows, n);
    shape(n, packed_steps<BFloat16>(rest));
    unrolled<NV>([&](auto j) { tiles_.template load<j>(sums + j * L, kLine); });
    for (int64_t k = 0; k < whole; k += kTileSteps, panel += kTilePairs * NV * L) {
      if (spacing != 0) {
        tiles_.template load<kRows>(rows[0] + segment.offset + k, spacing);
      } else {
        gather(rows, n, segment.offset + k, kTileSteps);
        tiles_.template load<kRows>(gathered_, sizeof(gathered_[0]));
      }
      multiply<NV, kRows, kWeights>(panel);
    }
    if (rest > 0) {
      gather(rows, n, segment.offset + whole, rest);
      tiles_.template load<kRestRows>(gathered_, sizeof(gathered_[0]));
      multiply<NV, kRestRows, kRestWeights>(panel);
    }
    unrolled<NV>([&](auto j) { tiles_.template store<j>(sums + j * L, kLine); });
  }

  template <int NV, int x, int weights>
  void multiply(const Pair* panel) {
    unrolled<NV>([&](auto j) {
      tiles_.template load<weights>(panel + j * L, NV * L * sizeof(Pair));
      tiles_.template multiply<j, x, weights>();
    });
  }

  // For n rows, and `pairs` that are left of the steps. Setting it takes long, so only if it is new.
  void shape(int64_t n, int64_t pairs) {
    if (n == n_ && pairs == pairs_) return;
    n_ = n, pairs_ = pairs;
    TileShapes shapes;
    const auto set = [&](int tile, int64_t rows, int64_t words) {
      shapes.rows[tile] = static_cast<uint8_t>(words == 0 ? 0 : rows);
      shapes.row_bytes[tile] = static_cast<uint16_t>(rows == 0 ? 0 : words * sizeof(Pair));
    };
    for (int tile = 0; tile < kRows; ++tile) set(tile, n, L);
    set(kRows, n, kTilePairs), set(kWeights, kTilePairs, L);
    set(kRestRows, n, pairs), set(kRestWeights, pairs, L);
    tiles_.shape(shapes);
  }

  // Bytes from each of the rows to the next; 0 where they lie otherwise, one here and one there.
  static int64_t spacing_of(const BFloat16* const* rows, int64_t n) {
    const auto from = [&](int64_t r) { return reinterpret_cast<intptr_t>(rows[r]); };
    if (n == 1) return kTileSteps * sizeof(BFloat16);
    const int64_t spacing = from(1) - from(0);
    for (int64_t r = 2; r < n; ++r) {
      if (from(r) - from(r - 1) != spacing) return 0;
    }
    return spacing;
  }

  // Up to 32 steps of the rows, side by side. Of an odd number the last pair's other step is 0, as
  // it is of weights: behind a row may be anything.
  void gather(const BFloat16* const* rows, int64_t n, int64_t k, int64_t steps) {
    for (int64_t r = 0; r < n; ++r) {
      if (steps == kTileSteps) {
        __builtin_memcpy(gathered_[r], rows[r] + k, sizeof(gathered_[r]));
      } else {
        __builtin_memcpy(gathered_[r], rows[r] + k, steps * sizeof(BFloat16));
        if (steps % 2 != 0) gathered_[r][steps] = BFloat16{};
      }
    }
  }

  Tiles tiles_;
  int64_t n_ = 0, pairs_ = 0;
  alignas(64) BFloat16 gathered_[kTileRows][kTileSteps];
};

// As panels_product has it, by tiles.
template <int NV, int U, int N, class Of, class Done, class Ahead>
void tiles_product(Range panels, int64_t n, const Of& operands, const Done& done,
                   const Ahead& ahead) {
  using V = Vec<float>;
  if (n == 0) return;
  TileProduct<Tiles> product;
  const int64_t rows = n < kTileRows ? n : kTileRows;
  for (int64_t q = panels.begin; q < panels.end; ++q) {
    const Operands<BFloat16, N> of = operands(q);
    with_vectors<NV, NV / U>(of.vectors, [&](auto vectors) {
      alignas(64) float sums[kTileRows][vectors][V::kLanes];
      for (int64_t i = 0; i < n;) {
        const int64_t first = i + rows <= n ? i : n - rows;  // the last group makes some once more
        ahead(q, i, first + rows - i);
        product.template run<vectors>(of.segments, first, rows, of.panel, of.bias, sums[0][0]);
        for (; i < first + rows; ++i) {
          V sum[vectors];
          for (int j = 0; j < vectors; ++j) sum[j] = V::load(sums[i - first][j]);
          done(q, i, sum);
        }
      }
    });
  }
}

// The same of a step of a scan of B sequences, n of which are alive here: by what is faster for B.
template <int NV, int U, int N, class E, class Of, class Done, class Ahead = NothingAhead>
inline void step_product(int64_t B, Range panels, int64_t n, const Of& operands, const Done& done,
                         const Ahead& ahead = {}) {
  if constexpr (by_tiles<E>(kTileRows)) {
    if (by_tiles<E>(B)) return tiles_product<NV, U, N>(panels, n, operands, done, ahead);
  }
  panels_product<NV, U, N, E>(panels, n, operands, done, ahead);
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
