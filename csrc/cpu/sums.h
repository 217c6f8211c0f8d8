// The gradients of a scan's weights: of all its products at once, so that the gradients of the gates
// are read and packed once, and what they multiplied is found where it lies, step by step.
//
// C = Aᵀ·B: A the gradients [T·B, M], packed a few columns at a time; B what they multiplied
// [T·B, N], packed into strips (gemm.h), a block of steps of each. Of a long sum with a small result
// the steps are cut into chunks, each with a result of its own, which threads share; else they share
// the rows of C. How sums are cut depends on sizes only, so results do not depend on the threads.
// Groups are shared as they are, or their rows where they are few. For tiles (tiles.h) gradients are
// packed turned, each column's steps side by side.
#pragma once

#include "cpu/gemm.h"
#include "cpu/sums_problem.h"
#include "cpu/workspace.h"

namespace rnnfast::cpu::RNNFAST_ISA {

template <class D, class X = D>
class SumsPass {
  using S = SumOf<D>;
  using Packed = PackedOf<D>;
  using V = Vec<S>;
  static constexpr int L = V::kLanes, R = kGroupRows, kSteps = Operand<D>::kSteps;
  static constexpr int64_t kWidth = kStripVectors * L;
  static constexpr int64_t kChunkSteps = 2048, kMostChunks = 16, kMostOfChunk = 1 << 16;

 public:
  explicit SumsPass(const Sums<D, X>& s)
      : s_(s),
        rules_{s.T, s.B, s.lengths, s.resets, s.reverse},
        size_(s.groups > 0 ? s.B / s.groups : s.B),
        K_(s.T * size_) {
    for (int o = 0; o < s.operand_count; ++o) {
      first_strip_[o] = strips_;
      strips_ += divide_up(s.operands[o].N, kWidth);
      if (s.operands[o].N > widest_) widest_ = s.operands[o].N;
    }
    for (int g = 0; g < s.gradient_count; ++g) {
      first_bias_[g] = biases_;
      biases_ += s.gradients[g].M;
      for (int o = 0; o < s.operand_count; ++o) {
        first_product_[g][o] = products_;
        if (s.gradients[g].products[o].to) products_ += s.gradients[g].M * s.operands[o].N;
      }
    }
    chunks_ = products_ > kMostOfChunk ? 1 : divide_up(K_, kChunkSteps);
    if (chunks_ > kMostChunks) chunks_ = kMostChunks;
    if (chunks_ < 1) chunks_ = 1;
    if (s.groups > 0) chunks_ = s.groups;
  }

  // Bytes of workspace.
  int64_t room() const {
    const int64_t own = s_.threads * (kA + kB);
    return (own + partial() + widest_) * int64_t(sizeof(S)) + chunks_ * biases_ * 8 + 5 * kLine;
  }

  void run() {
    Arena arena(s_.workspace);
    own_ = arena.take<Packed>(s_.threads * (kA + kB));
    zeros_ = arena.take<X>(widest_);
    partial_ = arena.take<S>(partial());
    totals_ = arena.take<double>(chunks_ * biases_);
    fill_zero(zeros_, widest_);
    fill_zero(totals_, chunks_ * biases_);
    const int parts = s_.threads;
    on_threads(parts, [&](int id, int threads) {
      Packed* const room = own_ + id * (kA + kB);
      for (int p = id; p < parts; p += threads) share(p, parts, room);
    });
    join();
  }

 private:
  // Words of each thread: packed gradients, and a block of strips.
  static constexpr int64_t kA = kBlockRows * kMostSteps + kBlockRows / kGroupRows * L;
  static constexpr int64_t kB = kBlockStrips * kWidth * kMostSteps;

  // Elements of what the chunks find.
  int64_t partial() const { return s_.groups == 0 && chunks_ > 1 ? chunks_ * products_ : 0; }

  // Part p of what there is to do.
  void share(int p, int parts, Packed* room) const {
    if (chunks_ == 1 || (s_.groups > 0 && s_.groups < parts)) {
      for (int64_t c = 0; c < chunks_; ++c) steps(c, 0, K_, p, parts, room);
      return;
    }
    const Range mine = part(chunks_, 1, p, parts);
    for (int64_t c = mine.begin; c < mine.end; ++c) {
      const Range chunk = s_.groups > 0 ? Range{0, K_} : part(K_, kMostSteps, c, chunks_);
      steps(c, chunk.begin, chunk.end, 0, 1, room);
    }
  }

  // Sums of the steps [begin, end), which are chunk c, or of group c; of C's rows part p of `parts`.
  void steps(int64_t c, int64_t begin, int64_t end, int p, int parts, Packed* room) const {
    Packed *const a = room, *const b = room + kA;
    int64_t strip = 0;
    do {
      const Range strips{strip, least(strip + kBlockStrips, strips_)};
      for (int term = 0; term < s_.terms; ++term) {
        GemmPart<D>::each_block(end - begin, [&](int64_t k, int64_t K) {
          pack_strips(c, term, strips, begin + k, K, b);
          for (int g = 0; g < s_.gradient_count; ++g) {
            if (!s_.gradients[g].terms[term].values && term > 0) continue;
            const Range mine = part(s_.gradients[g].M, R, p, parts);
            for (int64_t m = mine.begin; m < mine.end; m += kBlockRows) {
              const Range rows{m, least(m + kBlockRows, mine.end)};
              pack(c, g, term, rows, begin + k, K, a);
              if (strip == 0 && term == 0) add_rows(g, rows, K, a, totals_ + c * biases_);
              multiply(c, g, term, rows, strips, K, k > 0 || term > 0, a, b);
            }
          }
        });
      }
      strip = strips.end;
    } while (strip < strips_);
  }

  bool has(int o, int term) const { return term == 0 || s_.operands[o].terms[term].values; }

  int64_t width(int o, int64_t strip) const {
    return least(s_.operands[o].N - (strip - first_strip_[o]) * kWidth, kWidth);
  }
  // The strips of operand o among some.
  Range of_operand(int o, Range strips) const {
    const int64_t begin = first_strip_[o], end = begin + divide_up(s_.operands[o].N, kWidth);
    return {begin > strips.begin ? begin : strips.begin, least(end, strips.end)};
  }

  // Row (t, b) of an operand's term: zeros where it has none, so that no padding reaches a product.
  const X* row(const SumRows<X>& from, int64_t t, int64_t b) const {
    if (!rules_.alive(t, b)) return zeros_;
    if (from.initial) return rules_.previous(from.values, from.initial, zeros_, t, b, from.row);
    return from.values + t * from.step + b * from.row;
  }

  // The first of the sequences that chunk c has: those of its group, or all.
  int64_t first_of(int64_t c) const { return s_.groups > 0 ? c * size_ : 0; }

  void pack_strips(int64_t c, int term, Range strips, int64_t k, int64_t K, Packed* to) const {
    if (K == 0) return;
    for (int o = 0; o < s_.operand_count; ++o) {
      const Range mine = of_operand(o, strips);
      if (mine.size() <= 0 || !has(o, term)) continue;
      const SumRows<X>& rows = s_.operands[o].terms[term];
      const int64_t first = first_of(c);
      int64_t t = k / size_, b = first + k % size_;
      const auto next = [&] {
        const X* found = row(rows, t, b) + (mine.begin - first_strip_[o]) * kWidth;
        if (++b == first + size_) b = first, ++t;
        return found;
      };
      const int64_t words = packed_steps<D>(K);
      for (int64_t s = 0; s < words; ++s) {
        const X *from = next(), *second = (s + 1) * kSteps <= K && kSteps == 2 ? next() : nullptr;
        for (int64_t q = mine.begin; q < mine.end; ++q, from += kWidth) {
          const int64_t n = width(o, q), vectors = divide_up(n, L);
          Packed* at = to + (q - strips.begin) * kWidth * words + s * vectors * L;
          for (int64_t v = 0; v < vectors; ++v) {
            if constexpr (kSteps == 1) {
              read(from + v * L, n - v * L).store(at + v * L);
            } else {
              pack_pairs(from + v * L, second ? second + v * L : nullptr, n - v * L, at + v * L);
            }
          }
          if (second) second += kWidth;
        }
      }
    }
  }

  bool turned(int g) const { return by_tiles<D>(s_.gradients[g].M); }

  void pack(int64_t c, int g, int term, Range rows, int64_t k, int64_t K, Packed* to) const {
    const SumValues<D>& from = s_.gradients[g].terms[term];
    if constexpr (by_tiles<D>(kTileRows)) {
      if (turned(g)) return pack_turned(c, from, rows, k, K, to);
    }
    pack_rows(c, from, rows, k, K, to);
  }

  // From the words of a turned column to those of the next, with a gap as well.
  static int64_t line(int64_t words) { return words + L; }

  void pack_turned(int64_t c, const SumValues<D>& from, Range rows, int64_t k, int64_t K,
                   Packed* to) const {
    const int64_t words = packed_steps<D>(K), first = first_of(c);
    int64_t t = k / size_, b = first + k % size_;
    for (int64_t s = 0; s < words; s += L) {
      const D* steps[2 * L] = {};
      for (int64_t i = 0; i < least(K - 2 * s, 2 * L); ++i) {
        steps[i] = from.values + (t * s_.B + b) * from.row + rows.begin;
        if (++b == first + size_) b = first, ++t;
      }
      for (int64_t i = 0; i < rows.size(); i += L) {
        alignas(64) Packed square[L][L] = {};
        for (int l = 0; l < L && steps[2 * l]; ++l) {
          const D* second = steps[2 * l + 1];
          pack_pairs(steps[2 * l] + i, second ? second + i : nullptr, rows.size() - i, square[l]);
        }
        turn(square);
        for (int64_t r = i; r < least(i + L, rows.size()); ++r)
          V::load(reinterpret_cast<const float*>(square[r - i]))
              .store(reinterpret_cast<float*>(to + r * line(words) + s), words - s);
      }
    }
  }

  static void turn(Packed (&square)[L][L]) {
    if constexpr (kTransposes) {
      V rows[L];
      for (int r = 0; r < L; ++r) rows[r] = V::load(reinterpret_cast<const float*>(square[r]));
      transpose(rows);
      for (int r = 0; r < L; ++r) store_packed(rows[r], square[r]);
    } else {
      for (int r = 0; r < L; ++r) {
        for (int l = 0; l < r; ++l) {
          const Packed other = square[r][l];
          square[r][l] = square[l][r], square[l][r] = other;
        }
      }
    }
  }

  // Between packed groups there is a gap, as in gemm.h.
  static int64_t group(int64_t words) { return words * R + L; }

  void pack_rows(int64_t c, const SumValues<D>& from, Range rows, int64_t k, int64_t K,
                 Packed* to) const {
    if (K == 0) return;
    const int64_t words = packed_steps<D>(K), first = first_of(c);
    int64_t t = k / size_, b = first + k % size_;
    const auto next = [&] {
      const D* found = from.values + (t * s_.B + b) * from.row + rows.begin;
      if (++b == first + size_) b = first, ++t;
      return found;
    };
    for (int64_t s = 0; s < words; ++s) {
      const D *values = next(), *second = (s + 1) * kSteps <= K && kSteps == 2 ? next() : nullptr;
      Packed* at = to + s * R;
      int64_t i = 0;
      for (; i + R <= rows.size(); i += R, at += group(words)) {
        if constexpr (kSteps == 1) {
          __builtin_memcpy(at, values + i, R * sizeof(S));
        } else {
          for (int r = 0; r < R; ++r) at[r] = values[i + r].bits;
          for (int r = 0; second && r < R; ++r) at[r] |= Pair(second[i + r].bits) << 16;
        }
      }
      if (i == rows.size()) continue;
      for (int r = 0; r < R; ++r) {
        at[r] = 0;
        if (i + r >= rows.size()) continue;
        if constexpr (kSteps == 1) {
          at[r] = values[i + r];
        } else {
          at[r] = values[i + r].bits | (second ? Pair(second[i + r].bits) << 16 : 0);
        }
      }
    }
  }

  // The sums of the gradients themselves: few at a time in S, then in double. Of packed rows value i
  // is one of row i % R.
  void add_rows(int g, Range rows, int64_t K, const Packed* packed, double* totals) const {
    if (!s_.gradients[g].biases[0] && !s_.gradients[g].biases[1]) return;
    const int64_t words = packed_steps<D>(K);
    if (turned(g))
      return add_turned(words, rows.size(), packed, totals + first_bias_[g] + rows.begin);
    for (int64_t i = 0; i < rows.size(); i += R, packed += group(words)) {
      double sums[R] = {};
      int64_t first = 0;
      for (; first + kFew <= words * R; first += kFew) add_few(packed + first, sums);
      for (; first < words * R; first += L) {  // R divides L, or L is less
        const int64_t n = least(words * R - first, L);
        add_lanes(values_of_steps(packed + first, n), first, sums);
      }
      double* const total = totals + first_bias_[g] + rows.begin + i;
      for (int r = 0; r < R && i + r < rows.size(); ++r) total[r] += sums[r];
    }
  }

  void add_turned(int64_t words, int64_t rows, const Packed* packed, double* totals) const {
    for (int64_t i = 0; i < rows; ++i, packed += line(words)) {
      for (int64_t s = 0; s < words; s += kChains * L) {
        V few(S(0));
        for (int64_t at = s; at < least(s + kChains * L, words); at += L)
          few = few + values_of_steps(packed + at, least(words - at, L));
        for (int lane = 0; lane < L; ++lane) totals[i] += double(few.v[lane]);
      }
    }
  }

  // n packed values, each the sum of its steps; and 0.
  static V values_of_steps(const Packed* packed, int64_t n) {
    if constexpr (kSteps == 1) {
      return V::load(packed, n);
    } else {
      const auto bits = (Unsigned)V::load(reinterpret_cast<const float*>(packed), n).v;
      return as_floats(bits << 16u) + as_floats(bits & 0xffff0000u);
    }
  }

  static void add_lanes(V values, int64_t first, double (&sums)[R]) {
    for (int lane = 0; lane < L; ++lane) sums[(first + lane) % R] += double(values.v[lane]);
  }

  static constexpr int kChains = 4;
  static constexpr int64_t kFew = 4 * kChains * L;
  static_assert(kChains * L % R == 0, "vectors begin with row 0");

  static void add_few(const Packed* packed, double (&sums)[R]) {
    V total[kChains];
    for (int c = 0; c < kChains; ++c) total[c] = values_of_steps(packed + c * L, L);
    for (int64_t first = kChains * L; first < kFew; first += kChains * L) {
      for (int c = 0; c < kChains; ++c)
        total[c] = total[c] + values_of_steps(packed + first + c * L, L);
    }
    for (int c = 0; c < kChains; ++c) add_lanes(total[c], c * L, sums);
  }

  void multiply(int64_t c, int g, int term, Range rows, Range strips, int64_t K, bool add,
                const Packed* a, const Packed* b) const {
    const int64_t words = packed_steps<D>(K);
    for (int o = 0; o < s_.operand_count; ++o) {
      if (!s_.gradients[g].products[o].to || !has(o, term)) continue;
      const Range mine = of_operand(o, strips);
      const SumProduct<S> result =
          partial() > 0
              ? SumProduct<S>{partial_ + c * products_ + first_product_[g][o], s_.operands[o].N}
              : s_.gradients[g].products[o];
      S* const to = result.to + (s_.groups > 0 ? c * result.group : 0);
      for (int64_t q = mine.begin; q < mine.end; ++q) {
        S* const column = to + rows.begin * result.row + (q - first_strip_[o]) * kWidth;
        const Packed* const strip = b + (q - strips.begin) * kWidth * words;
        if constexpr (by_tiles<D>(kTileRows)) {
          if (turned(g)) {
            const Tile<S> tile{column, result.row, rows.size(), width(o, q), add, nullptr};
            const auto of = [&](int64_t i) {
              return reinterpret_cast<const D*>(a + i * line(words));
            };
            multiply_strip_by_tiles(K, 0, of, strip, tile);
            continue;
          }
        }
        for (int64_t i = 0; i < rows.size(); i += R) {
          const D* at[R];
          for (int r = 0; r < R; ++r)
            at[r] = reinterpret_cast<const D*>(a + i / R * group(words) + r);
          const Tile<S> tile{
              column + i * result.row, result.row, rows.size() - i, width(o, q), add, nullptr};
          multiply_strip<R>(Segment<D>{at, K}, strip, tile);
        }
      }
    }
  }

  // What the chunks found, added up in their order; groups, each by itself.
  void join() const {
    for (int g = 0; g < s_.gradient_count; ++g) {
      const SumGradients<D>& of = s_.gradients[g];
      for (int64_t c = 0; c < s_.groups; ++c) join_bias(of, first_bias_[g], c, c + 1, c);
      if (s_.groups == 0) join_bias(of, first_bias_[g], 0, chunks_, 0);
      for (int o = 0; partial() > 0 && o < s_.operand_count; ++o) {
        const int64_t N = s_.operands[o].N;
        for (int64_t m = 0; of.products[o].to && m < of.M; ++m)
          join(first_product_[g][o] + m * N, N, of.products[o].to + m * of.products[o].row);
      }
    }
  }

  // The sums of the chunks [begin, end), which are those of a group, or all.
  void join_bias(const SumGradients<D>& of, int64_t first, int64_t begin, int64_t end,
                 int64_t group) const {
    for (int64_t m = 0; m < of.M; ++m) {
      double total = 0;
      for (int64_t c = begin; c < end; ++c) total += totals_[c * biases_ + first + m];
      for (S* bias : of.biases) {
        if (bias) bias[group * of.bias_group + m] = S(total);
      }
    }
  }

  void join(int64_t first, int64_t n, S* to) const {
    for (int64_t i = 0; i < n; i += L) {
      V total = V::load(partial_ + first + i, n - i);
      for (int64_t c = 1; c < chunks_; ++c) {
        total = total + V::load(partial_ + c * products_ + first + i, n - i);
      }
      total.store(to + i, n - i);
    }
  }

  const Sums<D, X>& s_;
  const Rules rules_;
  const int64_t size_, K_;  // of a group; of its steps, or all
  int64_t strips_ = 0, widest_ = 0, biases_ = 0, products_ = 0, chunks_ = 1;
  int64_t first_strip_[kMostOperands] = {}, first_bias_[kMostGradients] = {};
  int64_t first_product_[kMostGradients][kMostOperands] = {};
  Packed* own_ = nullptr;
  X* zeros_ = nullptr;
  S* partial_ = nullptr;
  double* totals_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA
