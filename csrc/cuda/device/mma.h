// The product of a slab of the resident matrix (16 rows × 64 bytes of columns, slabs.h) with the
// operands of 8 sequences, by a warp. All four ways hold a slab in 8 registers a thread and leave
// the sum in the accumulators of mma.sync: a thread's are rows lane/4 and lane/4 + 8, sequences
// 2·(lane%4) + {0, 1}.
//
// What a policy offers:
//   Storage, Operand                 dtype of tensors; of an operand in shared memory
//   row(i), column(i, lane%4)        of the matrix, what register i of a slab begins with
//   kSideBySide                      whether a thread's columns of a row are neighbours
//   operand(float), stored(Storage)  as an operand
//   own_place(stride)                where this lane reads in rows of `stride` bytes
//   Columns, load_columns(own, stride, slab)  the operands that a slab meets; own: its place
//   kTileByTile                      whether a Sum is too large for all tiles of a warp at once
//   Sum, Sum::clear(), add<kFirst>(sum, slab, columns), finish(sum, d)
//
// A Sum may keep several chains of additions to hide latency; they are added up in a fixed order.
#pragma once

#include "cuda/device/device.h"
#include "cuda/device/saved.h"
#include "cuda/device/slabs.h"

namespace rnnfast::cuda {

inline constexpr unsigned kFullWarp = 0xFFFFFFFFu;

namespace detail {

struct Registers4 {
  uint32_t at[4];
};

template <int kChains>
struct TensorSum {
  float chain[kChains][4];

  RNNFAST_DEVICE void clear() {
    RNNFAST_UNROLL
    for (int k = 0; k < kChains; ++k) {
      RNNFAST_UNROLL
      for (int i = 0; i < 4; ++i) chain[k][i] = 0;
    }
  }
};

// What the three tensor-core policies share. Multiply: d += a·b for half a slab.
template <class Multiply>
struct TensorCore {
  using Columns = Registers4;
  static constexpr bool kTileByTile = false;
  static constexpr bool kSideBySide = false;

  template <int kChains>
  using Sum = TensorSum<kChains>;

  RNNFAST_DEVICE static int row(int i) { return lane() / 4 + (i & 1) * 8; }

  RNNFAST_DEVICE static int own_place(int stride) {
    return (lane() & 7) * stride + (lane() >> 3) * 16;
  }
  RNNFAST_DEVICE static Columns load_columns(const unsigned char* own, int, int slab) {
    Columns columns;
    load_matrix_x4(columns.at, own + slab * kSlabBytes);
    return columns;
  }

  // kFirst: which chain the first half goes to, modulo their number.
  template <int kFirst, int kChains>
  RNNFAST_DEVICE static void add(Sum<kChains>& sum, const uint32_t (&slab)[kSlabWords],
                                 const Columns& columns) {
    const uint32_t a0[4] = {slab[0], slab[1], slab[2], slab[3]};
    const uint32_t a1[4] = {slab[4], slab[5], slab[6], slab[7]};
    const uint32_t b0[2] = {columns.at[0], columns.at[1]};
    const uint32_t b1[2] = {columns.at[2], columns.at[3]};
    Multiply::multiply(sum.chain[kFirst % kChains], a0, b0);
    Multiply::multiply(sum.chain[(kFirst + 1) % kChains], a1, b1);
  }

  template <int kChains>
  RNNFAST_DEVICE static void finish(const Sum<kChains>& sum, float (&d)[4]) {
    RNNFAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      d[i] = sum.chain[0][i];
      RNNFAST_UNROLL
      for (int k = 1; k < kChains; ++k) d[i] += sum.chain[k][i];
    }
  }
};

struct MultiplyBf16 {
  RNNFAST_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
};
struct MultiplyF16 {
  RNNFAST_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
};
struct MultiplyTf32 {
  RNNFAST_DEVICE static void multiply(float (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2]) {
    mma_tf32(d, a, b);
  }
};

template <class S, class Multiply>
struct TensorCore16 : TensorCore<Multiply> {
  using Storage = S;
  using Operand = uint16_t;
  static constexpr int kPerWord = 2;

  RNNFAST_DEVICE static int column(int i, int q) { return (i >> 1) * 8 + q * 2; }
  RNNFAST_DEVICE static Operand operand(float v) { return from_float<S>(v).bits; }
  RNNFAST_DEVICE static Operand stored(S v) { return v.bits; }
};

}  // namespace detail

struct MmaBf16 : detail::TensorCore16<Bf16, detail::MultiplyBf16> {
  static constexpr Math kMath = Math::kBf16;
};

struct MmaF16 : detail::TensorCore16<F16, detail::MultiplyF16> {
  static constexpr Math kMath = Math::kF16;
};

struct MmaTf32 : detail::TensorCore<detail::MultiplyTf32> {
  static constexpr Math kMath = Math::kTf32;
  using Storage = float;
  using Operand = uint32_t;
  static constexpr int kPerWord = 1;

  RNNFAST_DEVICE static int column(int i, int q) { return (i >> 1) * 4 + q; }
  RNNFAST_DEVICE static Operand operand(float v) { return to_tf32(v); }
  RNNFAST_DEVICE static Operand stored(float v) { return to_tf32(v); }
};

// Without tensor cores: a thread has 4 columns of 2 rows, multiplies them for all 8 sequences, and
// the four threads that share the rows add up at the end.
struct MmaFp32 {
  static constexpr Math kMath = Math::kFp32;
  using Storage = float;
  using Operand = uint32_t;
  static constexpr int kPerWord = 1;
  static constexpr bool kTileByTile = true;
  static constexpr bool kSideBySide = true;

  struct Columns {
    float at[kColumns][4];
  };

  template <int kChains>  // its 16 sums are chains enough
  struct Sum {
    float at[2][kColumns];

    RNNFAST_DEVICE void clear() {
      RNNFAST_UNROLL
      for (int r = 0; r < 2; ++r) {
        RNNFAST_UNROLL
        for (int n = 0; n < kColumns; ++n) at[r][n] = 0;
      }
    }
  };

  RNNFAST_DEVICE static int row(int i) { return lane() / 4 + (i >> 2) * 8; }
  RNNFAST_DEVICE static int column(int i, int q) { return q * 4 + (i & 3); }
  RNNFAST_DEVICE static Operand operand(float v) { return bits_of(v); }
  RNNFAST_DEVICE static Operand stored(float v) { return bits_of(v); }

  RNNFAST_DEVICE static int own_place(int) { return (lane() & 3) * 16; }
  RNNFAST_DEVICE static Columns load_columns(const unsigned char* own, int stride, int slab) {
    Columns columns;
    RNNFAST_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      const auto four =
          load(reinterpret_cast<const SlotVector<float, 4>*>(own + n * stride + slab * kSlabBytes));
      RNNFAST_UNROLL
      for (int k = 0; k < 4; ++k) columns.at[n][k] = four.at[k];
    }
    return columns;
  }

  template <int kFirst, int kChains>
  RNNFAST_DEVICE static void add(Sum<kChains>& sum, const uint32_t (&slab)[kSlabWords],
                                 const Columns& columns) {
    RNNFAST_UNROLL
    for (int k = 0; k < 4; ++k) {
      RNNFAST_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        sum.at[0][n] += float_of(slab[k]) * columns.at[n][k];
        sum.at[1][n] += float_of(slab[4 + k]) * columns.at[n][k];
      }
    }
  }

  // Two exchanges: the first leaves a thread with 4 sequences, the second with its 2.
  template <int kChains>
  RNNFAST_DEVICE static void finish(const Sum<kChains>& sum, float (&d)[4]) {
    const bool upper_half = lane() & 2, upper_pair = lane() & 1;
    RNNFAST_UNROLL
    for (int r = 0; r < 2; ++r) {
      float half[4];
      RNNFAST_UNROLL
      for (int n = 0; n < 4; ++n) {
        const float keep = upper_half ? sum.at[r][4 + n] : sum.at[r][n];
        const float give = upper_half ? sum.at[r][n] : sum.at[r][4 + n];
        half[n] = keep + shuffle_xor(kFullWarp, give, 2);
      }
      RNNFAST_UNROLL
      for (int n = 0; n < 2; ++n) {
        const float keep = upper_pair ? half[2 + n] : half[n];
        const float give = upper_pair ? half[n] : half[2 + n];
        d[2 * r + n] = keep + shuffle_xor(kFullWarp, give, 1);
      }
    }
  }
};

}  // namespace rnnfast::cuda
