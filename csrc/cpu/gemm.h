// A product of two large matrices: C = A·B, with a row added to each of its own, or C += A·B.
//
// Of B, blocks are packed into strips of three vectors, strip[k][j][lane], which lie in the second
// cache while the rows of A pass, a few at a time; rows that are not contiguous are packed too. Each
// element is the sum, over blocks of k in order, of the block's sum in order, whatever the number of
// threads, so results do not depend on how work is split. What is stored in 16 bits is multiplied in
// pairs where it can be (operand.h), else made float when it is packed.
#pragma once

#include "cpu/gemm_problem.h"
#include "cpu/panel.h"
#include "cpu/team.h"
#include "cpu/tile_product.h"
#include "cpu/transpose.h"

namespace rnnfast::cpu::RNNFAST_ISA {

constexpr int kStripVectors = 3;
constexpr int kGroupRows = kMaxRows<kStripVectors>;
// Sums of more steps would be less exact, and of fewer C would be read and written more often.
constexpr int64_t kMostSteps = 256;
constexpr int64_t kBlockRows = 192, kBlockStrips = 40;

// Of K steps those of a block: as many as may be, all blocks much alike, and multiples of whatever
// is packed or turned at once.
constexpr int64_t block_steps(int64_t K) {
  constexpr int64_t kGrain = 16;
  return K <= kMostSteps ? K : divide_up(K, divide_up(K, kMostSteps) * kGrain) * kGrain;
}

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// A tile of C: `rows` of kGroupRows and `lanes` of W vectors exist. Added to what is there, or
// instead of it, begun with `row` if that is not null.
template <class S, class Row = S>
struct Tile {
  S* c;
  int64_t stride, rows, lanes;
  bool add;
  const Row* row;
};

// Row r of a tile, of which not all lanes need exist.
template <int W, class S, class Row>
__attribute__((always_inline)) inline void put_row(const Tile<S, Row>& tile, int64_t r,
                                                   const Vec<S> (&sums)[W]) {
  using V = Vec<S>;
#pragma GCC unroll 8
  for (int j = 0; j < W; ++j) {
    const int64_t n = tile.lanes - j * V::kLanes;
    if (n <= 0) break;
    S* c = tile.c + r * tile.stride + j * V::kLanes;
    V sum = sums[j];
    if (tile.add) sum = V::load(c, n) + sum;
    if (tile.row) sum = read(tile.row + j * V::kLanes, n) + sum;
    sum.store(c, n);
  }
}

// The sums of the segment's steps, of kGroupRows rows times one strip. kStep: as multiply_add has it.
template <int W, int kStep, class E, class Row>
__attribute__((noinline)) void multiply_tile(const Segment<E>& segment, const PackedOf<E>* strip,
                                             const Tile<SumOf<E>, Row>& tile) {
  using S = SumOf<E>;
  using V = Vec<S>;
  constexpr int L = V::kLanes, R = kGroupRows;
  V sums[R][W];
  for (int r = 0; r < R && r < tile.rows; ++r) {  // C is read long after this
    for (int j = 0; j < W; ++j) __builtin_prefetch(tile.c + r * tile.stride + j * L, 1);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) sums[r][j] = V(S(0));
  }
  multiply_add<R, W, kStep>(segment, 0, strip, sums);
  if (tile.rows >= R && tile.lanes >= W * L && !tile.row) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      S* c = tile.c + r * tile.stride;
#pragma GCC unroll 8
      for (int j = 0; j < W; ++j) {
        const V sum = sums[r][j];
        (tile.add ? V::load(c + j * L) + sum : sum).store(c + j * L);
      }
    }
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (r >= tile.rows) break;
    put_row(tile, r, sums[r]);
  }
}

// The same by tiles of the processor (tiles.h), of any number of rows; row(i): the i-th.
template <int W, class Of, class Row>
void multiply_by_tiles(int64_t K, int64_t offset, const Of& row, const Pair* strip,
                       const Tile<float, Row>& tile) {
  using V = Vec<float>;
  TileProduct<Tiles> product;
  const int64_t rows = least(tile.rows, kTileRows);
  alignas(64) float sums[kTileRows][W][V::kLanes];
  for (int64_t i = 0; i < tile.rows;) {
    const int64_t first = least(i, tile.rows - rows);
    const BFloat16* at[kTileRows];
    for (int64_t r = 0; r < rows; ++r) at[r] = row(first + r);
    product.template run<W, 1>({{at, K, offset}}, 0, rows, strip, nullptr, sums[0][0]);
    for (; i < first + rows; ++i) {
      V made[W];
      for (int j = 0; j < W; ++j) made[j] = V::load(sums[i - first][j]);
      put_row(tile, i, made);
    }
  }
}
template <class Of, class Row>
void multiply_strip_by_tiles(int64_t K, int64_t offset, const Of& row, const Pair* strip,
                             const Tile<float, Row>& tile) {
  const int64_t vectors = divide_up(tile.lanes, Vec<float>::kLanes);
  if (vectors == 3) return multiply_by_tiles<3>(K, offset, row, strip, tile);
  if (vectors == 2) return multiply_by_tiles<2>(K, offset, row, strip, tile);
  multiply_by_tiles<1>(K, offset, row, strip, tile);
}

// The same of a strip of up to kStripVectors vectors.
template <int kStep, class E, class Row>
void multiply_strip(const Segment<E>& segment, const PackedOf<E>* packed,
                    const Tile<SumOf<E>, Row>& tile) {
  const int64_t vectors = divide_up(tile.lanes, Vec<SumOf<E>>::kLanes);
  if (vectors == 3) return multiply_tile<3, kStep>(segment, packed, tile);
  if (vectors == 2) return multiply_tile<2, kStep>(segment, packed, tile);
  multiply_tile<1, kStep>(segment, packed, tile);
}

// One thread's part of a product.
template <class A, class B = A>
class GemmPart {
  using E = std::conditional_t<kNarrow<B>, OperandOf<A>, A>;
  using S = SumOf<E>;
  using Packed = PackedOf<E>;
  using V = Vec<S>;
  static constexpr int L = V::kLanes, kSteps = Operand<E>::kSteps;
  static constexpr bool kConverts = !std::is_same_v<A, E>;  // rows of A, to be multiplied
  static constexpr int64_t kWidth = kStripVectors * L;
  static constexpr int64_t kGroups = kBlockRows / kGroupRows;  // of packed rows

 public:
  // Elements S of workspace.
  static constexpr int64_t kRoom =
      kBlockRows * kMostSteps + kGroups * L + kBlockStrips * kWidth * kMostSteps;

  GemmPart(const Gemm<A, B>& g, Range rows, Range columns, S* room)
      : g_(g),
        rows_(rows),
        columns_(columns),
        b_(reinterpret_cast<Packed*>(room)),
        a_(room + kBlockStrips * kWidth * kMostSteps) {}
  // For `pack` and `multiply_packed`, which need no room.
  explicit GemmPart(const Gemm<A, B>& g) : g_(g), rows_{}, columns_{}, b_(nullptr), a_(nullptr) {}

  void run() {
    for (int64_t n = columns_.begin; n < columns_.end; n += kBlockStrips * kWidth) {
      const int64_t N = least(columns_.end - n, kBlockStrips * kWidth);
      each_block(g_.K, [&](int64_t k, int64_t K) {
        pack_columns(n, N, k, K);
        for (int64_t m = rows_.begin; m < rows_.end; m += kBlockRows) {
          const int64_t M = least(rows_.end - m, kBlockRows);
          if constexpr (kConverts) {
            convert_rows(m, M, k, K);
          } else if constexpr (!kNarrow<A>) {
            if (g_.a_column != 1) pack_rows(m, M, k, K);
          }
          for (int64_t j = 0; j < N; j += kWidth)
            strip(m, M, n + j, least(N - j, kWidth), k, K, b_ + j * packed_steps<E>(K));
        }
      });
    }
  }

  // body(first step, steps) of each block; also where there is no step: C is then what it begins
  // with.
  template <class Body>
  static void each_block(int64_t steps, const Body& body) {
    int64_t k = 0;
    do {
      const int64_t K = least(steps - k, block_steps(steps));
      body(k, K);
      k += K;
    } while (k < steps);
  }

  // For products with one B that is packed before, all of it: its strips, and its elements packed.
  static int64_t strips(int64_t N) { return divide_up(N, kWidth); }
  static int64_t packed_elements(int64_t N, int64_t K) {
    return strips(N) * kWidth * packed_steps<E>(K);
  }
  void pack(Range strips, Packed* packed) {
    each_block(g_.K, [&](int64_t k, int64_t K) {
      for (int64_t q = strips.begin; q < strips.end; ++q)
        pack_strip(q * kWidth, width(q), k, K, packed_at(packed, q, k, K));
    });
  }
  // Of all rows, those of A contiguous, one strip and one block, in the order of blocks.
  void multiply_packed(int64_t q, int64_t k, int64_t K, Packed* packed) {
    strip(0, g_.M, q * kWidth, width(q), k, K, packed_at(packed, q, k, K));
  }

 private:
  int64_t width(int64_t q) const { return least(g_.N - q * kWidth, kWidth); }
  // Blocks but the last are of whole words.
  Packed* packed_at(Packed* packed, int64_t q, int64_t k, int64_t K) const {
    return packed + strips(g_.N) * kWidth * (k / kSteps) + q * kWidth * packed_steps<E>(K);
  }

  // Between packed groups there is a gap, since a power of two would lay them all in the same few
  // lines of the cache.
  static int64_t group(int64_t K) { return K * kGroupRows + L; }

  void convert_rows(int64_t m, int64_t M, int64_t k, int64_t K) {
    for (int64_t i = 0; i < M; ++i) convert(a_ + i * K, g_.a + (m + i) * g_.a_row + k, K);
  }

  // Rows that lie side by side are copied a group at a time, others value by value.
  void pack_rows(int64_t m, int64_t M, int64_t k, int64_t K) {
    const A* from = g_.a + m * g_.a_row + k * g_.a_column;
    for (int64_t s = 0; s < K; ++s, from += g_.a_column) {
      S* to = a_ + s * kGroupRows;
      int64_t i = 0;
      if (g_.a_row == 1) {
        for (; i + kGroupRows <= M; i += kGroupRows, to += group(K)) {
          for (int r = 0; r < kGroupRows; ++r) to[r] = from[i + r];
        }
      }
      for (; i < M; i += kGroupRows, to += group(K)) {
        for (int r = 0; r < kGroupRows; ++r) to[r] = i + r < M ? from[(i + r) * g_.a_row] : S(0);
      }
    }
  }

  // A block of B, as strips.
  void pack_columns(int64_t n, int64_t N, int64_t k, int64_t K) {
    const int64_t words = packed_steps<E>(K);
    if (g_.b_column != 1) {
      for (int64_t j = 0; j < N; j += kWidth) {
        pack_strip(n + j, least(N - j, kWidth), k, K, b_ + j * words);
      }
      return;
    }
    for (int64_t s = 0; s < words; ++s) {  // whole rows, as they lie in memory
      const B* from = g_.b + n + (k + s * kSteps) * g_.b_row;
      const int64_t below = (s + 1) * kSteps <= K ? g_.b_row : 0;
      int64_t j = 0;
      for (; j + kWidth <= N; j += kWidth) {
        Packed* to = b_ + j * words + s * kWidth;
        for (int v = 0; v < kStripVectors; ++v)
          cpu::RNNFAST_ISA::pack_columns<E>(from + j + v * L, below, L, to + v * L);
      }
      const int64_t step = divide_up(N - j, L) * L;
      for (int64_t i = j; i < N; i += L) {
        Packed* to = b_ + j * words + s * step + i - j;
        cpu::RNNFAST_ISA::pack_columns<E>(from + i, below, N - i, to);
      }
    }
  }

  // A strip of B of `width` columns that are not side by side, whole vectors with zeros in lanes that do not exist.
  void pack_strip(int64_t n, int64_t width, int64_t k, int64_t K, Packed* to) {
    const B* from = g_.b + n * g_.b_column + k * g_.b_row;
    const int64_t step = divide_up(width, L) * L, words = packed_steps<E>(K);
    for (int64_t j = 0; j < width; j += L, from += L * g_.b_column, to += L) {
      const int64_t lanes = least(width - j, L);
      int64_t s = 0;
      if (kTransposes && g_.b_row == 1 && lanes == L) {
        for (; (s + L) * kSteps <= K; s += L) {
          V square[L];
          for (int lane = 0; lane < L; ++lane)
            square[lane] = row_words<E>(from + lane * g_.b_column + s * kSteps);
          transpose(square);
          for (int i = 0; i < L; ++i) store_packed(square[i], to + (s + i) * step);
        }
      }
      for (; s < words; s += kFew) {
        const int64_t count = least(words - s, kFew), first = s * kSteps;
        for (int64_t lane = 0; lane < L; ++lane) {
          Packed few[kFew] = {};
          if (lane < lanes) {
            const B* column = from + lane * g_.b_column + first * g_.b_row;
            row_words<E>(column, g_.b_row, least(K - first, kFew * kSteps), few);
          }
          for (int64_t i = 0; i < count; ++i) to[(s + i) * step + lane] = few[i];
        }
      }
    }
  }
  static constexpr int64_t kFew = 16;

  void strip(int64_t m, int64_t M, int64_t n, int64_t width, int64_t k, int64_t K,
             const Packed* packed) {
    const bool add = k > 0 || g_.add;
    const B* row = add || !g_.row ? nullptr : g_.row + n;
    if constexpr (by_tiles<E>(kTileRows)) {
      if (by_tiles<E>(g_.all_rows > 0 ? g_.all_rows : g_.M)) {
        const Tile<S, B> tile{g_.c + m * g_.c_row + n, g_.c_row, M, width, add, row};
        const auto of = [&](int64_t i) { return g_.a + (m + i) * g_.a_row; };
        return multiply_strip_by_tiles(K, k, of, packed, tile);
      }
    }
    for (int64_t i = 0; i < M; i += kGroupRows) {
      const Tile<S, B> tile{g_.c + (m + i) * g_.c_row + n, g_.c_row, M - i, width, add, row};
      const E* rows[kGroupRows];
      if constexpr (kConverts) {
        for (int r = 0; r < kGroupRows; ++r) rows[r] = a_ + least(i + r, M - 1) * K;
        multiply_strip<1>(Segment<E>{rows, K}, packed, tile);
      } else if (kNarrow<A> || g_.a_column == 1) {
        for (int r = 0; r < kGroupRows; ++r) rows[r] = g_.a + (m + least(i + r, M - 1)) * g_.a_row;
        multiply_strip<1>(Segment<E>{rows, K, k}, packed, tile);
      } else if constexpr (!kNarrow<A>) {
        for (int r = 0; r < kGroupRows; ++r) rows[r] = a_ + i / kGroupRows * group(K) + r;
        multiply_strip<kGroupRows>(Segment<E>{rows, K}, packed, tile);
      }
    }
  }

  const Gemm<A, B>& g_;
  const Range rows_, columns_;
  Packed* const b_;
  S* const a_;
};

template <class A, class B>
void gemm(const Gemm<A, B>& g) {
  using S = Wide<A>;
  using Part = GemmPart<A, B>;
  const int parts = g.split.rows * g.split.columns;
  on_threads(parts, [&](int id, int threads) {
    for (int p = id; p < parts; p += threads) {
      const Range rows = part(g.M, kGroupRows, p / g.split.columns, g.split.rows);
      const Range columns =
          part(g.N, kStripVectors * Vec<S>::kLanes, p % g.split.columns, g.split.columns);
      Part(g, rows, columns, static_cast<S*>(g.workspace) + id * Part::kRoom).run();
    }
  });
}

// Does nothing but multiply and add in registers, as fast as the processor can: `rounds` times, and
// returns what it did, in floating-point operations.
inline double multiply_adds(int64_t rounds) {
  using V = Vec<float>;
  constexpr int N = kAccumulators;
  typename V::Native total[N];
  float one = 1, small = 1e-9f;
  __asm__ volatile("" : "+m"(one), "+m"(small));  // so that nothing is known of them
  const V x(one), y(small);
#pragma GCC unroll 32
  for (int i = 0; i < N; ++i) total[i] = V(float(i)).v;
  for (int64_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 32
    for (int i = 0; i < N; ++i) total[i] = total[i] * x.v + y.v;
  }
  float sum = 0;
#pragma GCC unroll 32
  for (int i = 0; i < N; ++i) sum += total[i][0];
  __asm__ volatile("" : : "m"(sum));
  return 2.0 * N * V::kLanes * double(rounds);
}

}  // namespace rnnfast::cpu::RNNFAST_ISA
