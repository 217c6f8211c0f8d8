// Products of a step in float32: planes × units outputs for each sequence, sums over the units of
// one or several operands. A block has kUnits units of kRows sequences.
//
// The values of kDepth units at a time go through shared memory, while the next ones are on their
// way to registers. Warps share a block's outputs, and where sequences are few also the sum, which
// is then added up in a fixed order: results repeat bit for bit.
#pragma once

#include "cuda/steps/step.h"

namespace rnnfast::cuda::steps {

inline constexpr int kProductThreads = 256;
inline constexpr int kUnits = 16;
inline constexpr int kDepth = 32;

// A part of an operand: units [offset, offset + K) of a row, for the first block.
struct Segment {
  int64_t row, offset, K;
  bool old;  // a state before the step
};

// Of a weight: output unit r, value k is at r·row + k·column, of block b b·block further on.
struct Matrix {
  const float* from;
  int64_t row, column, block;
};

// Where a plane's sums go, for products that are not used at once.
struct Place {
  int64_t row, offset;
};

// Of a block-diagonal matrix each block makes its `width` units of its K values.
template <int kPlanes, int kTerms>
struct Product {
  static constexpr int planes = kPlanes;
  int64_t blocks, width;
  Segment segments[kTerms];
  Matrix matrices[kPlanes][kTerms];
  Place to[kPlanes];
};

// How 256 threads share a block's outputs: 4 sequences of a unit each, in kRowGroups groups of 16
// units; the slices share the sum.
template <int kRowGroups>
struct Tile {
  static constexpr int kRows = 4 * kRowGroups;
  static constexpr int kSlices = kProductThreads / (kUnits * kRowGroups);
};
using Wide = Tile<8>;    // 32 sequences
using Narrow = Tile<2>;  // 8

struct alignas(16) Four {
  float x[4];
};

// A block's share of the values, between global and shared memory. Every thread reads for one
// sequence, whose rows it finds once for each operand.
template <class Tile, class Step, int kPlanes, int kTerms>
class Values {
  static constexpr int kRowGroups = Tile::kRows / 4;
  static constexpr int kReads = kRowGroups / 2;  // of an operand, a thread
  static constexpr int kRowStride = Tile::kRows + 4, kWeightStride = kPlanes * kUnits + 1;

 public:
  static constexpr int kOperands = kDepth * kRowStride;
  static constexpr int kShared = kOperands + kDepth * kWeightStride;

  RNNFAST_DEVICE Values(const Step& a, const Product<kPlanes, kTerms>& product, int64_t b0,
                        int64_t block, int64_t u0, float* shared)
      : a_(a),
        product_(product),
        block_(block),
        u0_(u0),
        operands_(shared),
        weights_(shared + kOperands) {
    row_ = lane() / 8 + 4 * (warp() % kRowGroups);
    sequence_ = sequence_of(a, b0 + row_);
    begin_term();
  }

  // Whether not all was read.
  RNNFAST_DEVICE bool more() const { return term_ < kTerms; }

  RNNFAST_DEVICE void read() {
    const Segment& segment = product_.segments[term_];
    RNNFAST_UNROLL
    for (int i = 0; i < kReads; ++i) {
      const int64_t k = k0_ + own_k(i);
      own_[i] = from_ != nullptr && k < segment.K ? load(from_ + k) : 0.0f;
    }
    RNNFAST_UNROLL
    for (int i = 0; i < 2 * kPlanes; ++i) {
      const Matrix& matrix = product_.matrices[i / 2][term_];
      const bool by_row = matrix.column == 1;
      const int64_t u = u0_ + weight_unit(i, by_row), k = k0_ + weight_k(i, by_row);
      const bool exists = u < product_.width && k < segment.K;
      weight_[i] =
          exists
              ? load_once(matrix.from + block_ * matrix.block + u * matrix.row + k * matrix.column)
              : 0.0f;
    }
    read_term_ = term_;
    k0_ += kDepth;
    if (k0_ >= segment.K) {
      ++term_;
      k0_ = 0;
      if (more()) begin_term();
    }
  }

  // What was read last, to shared memory.
  RNNFAST_DEVICE void publish() {
    RNNFAST_UNROLL
    for (int i = 0; i < kReads; ++i) operands_[own_k(i) * kRowStride + row_] = own_[i];
    RNNFAST_UNROLL
    for (int i = 0; i < 2 * kPlanes; ++i) {
      const bool by_row = product_.matrices[i / 2][read_term_].column == 1;
      const int at = weight_k(i, by_row) * kWeightStride + weight_unit(i, by_row);
      weights_[at + i / 2 * kUnits] = weight_[i];
    }
  }

  // Adds this thread's share of what is in shared memory.
  RNNFAST_DEVICE void multiply(float (&sum)[kPlanes][4]) const {
    constexpr int kShare = kDepth / Tile::kSlices;
    const int unit = thread_index() % kUnits, group = thread_index() / kUnits % kRowGroups;
    const int first = thread_index() / (kUnits * kRowGroups) * kShare;
    RNNFAST_UNROLL
    for (int i = 0; i < kShare; ++i) {
      const int k = first + i;
      const Four x = *reinterpret_cast<const Four*>(operands_ + k * kRowStride + 4 * group);
      RNNFAST_UNROLL
      for (int p = 0; p < kPlanes; ++p) {
        const float w = weights_[k * kWeightStride + p * kUnits + unit];
        for (int r = 0; r < 4; ++r) sum[p][r] += x.x[r] * w;
      }
    }
  }

 private:
  RNNFAST_DEVICE void begin_term() {
    const Segment& segment = product_.segments[term_];
    const Rows& rows = a_.rows[segment.row];
    from_ = nullptr;
    if (!sequence_.alive) return;
    from_ = segment.old ? old_row(rows, sequence_) : rows.at + sequence_.b * rows.width;
    if (from_ != nullptr) from_ += segment.offset + block_ * segment.K;
  }

  // A warp reads 8 neighbours of each of 4 sequences, and writes them without a bank conflict.
  RNNFAST_DEVICE static int own_k(int i) {
    return lane() % 8 + 8 * (warp() / kRowGroups + 8 / kRowGroups * i);
  }
  // Neighbouring lanes read neighbouring elements, however the matrix lies.
  RNNFAST_DEVICE static int weight_unit(int i, bool by_row) {
    return by_row ? warp() + 8 * (i % 2) : thread_index() % kUnits;
  }
  RNNFAST_DEVICE static int weight_k(int i, bool by_row) {
    return by_row ? lane() : thread_index() / kUnits + 16 * (i % 2);
  }

  const Step& a_;
  const Product<kPlanes, kTerms>& product_;
  const int64_t block_, u0_;
  float *const operands_, *const weights_;
  int row_;
  Sequence sequence_;
  const float* from_ = nullptr;
  int term_ = 0, read_term_ = 0;
  int64_t k0_ = 0;
  float own_[kReads], weight_[2 * kPlanes];
};

// done(q, j, sums[planes]) for each sequence and unit of this block of threads that exist.
template <class Tile, class Step, int kPlanes, int kTerms, class Done>
RNNFAST_DEVICE void multiply(const Step& a, const Product<kPlanes, kTerms>& product, int64_t b0,
                             int64_t block, int64_t u0, const Done& done) {
  using Own = Values<Tile, Step, kPlanes, kTerms>;
  constexpr int kOutputs = Tile::kRows * kUnits;  // of a plane
  constexpr int kSums = Tile::kSlices * kPlanes * kOutputs;
  RNNFAST_SHARED_ARRAY(float, shared, Own::kShared > kSums ? Own::kShared : kSums);
  Own values(a, product, b0, block, u0, shared);
  float sum[kPlanes][4] = {};
  values.read();
  for (bool more = true; more;) {
    values.publish();
    sync_block();
    more = values.more();
    if (more) values.read();
    values.multiply(sum);
    sync_block();
  }
  const int slice = thread_index() / (kUnits * (Tile::kRows / 4));
  const int own = thread_index() % (kUnits * (Tile::kRows / 4));
  RNNFAST_UNROLL
  for (int p = 0; p < kPlanes; ++p) {
    for (int r = 0; r < 4; ++r) {
      const int row = own / kUnits * 4 + r;
      shared[(slice * kPlanes + p) * kOutputs + row * kUnits + own % kUnits] = sum[p][r];
    }
  }
  sync_block();
  for (int o = thread_index(); o < kOutputs; o += kProductThreads) {
    const Sequence q = sequence_of(a, b0 + o / kUnits);
    const int64_t u = u0 + o % kUnits;
    if (!q.alive || u >= product.width) continue;
    float x[kPlanes];
    RNNFAST_UNROLL
    for (int p = 0; p < kPlanes; ++p) {
      x[p] = shared[p * kOutputs + o];
      for (int s = 1; s < Tile::kSlices; ++s) x[p] += shared[(s * kPlanes + p) * kOutputs + o];
    }
    done(q, block * product.width + u, x);
  }
}

// --- kernels -----------------------------------------------------------------------------------

template <class Step, class Shape>
struct ProductArgs {
  Step step;
  Shape product;
  int64_t tiles;  // of units, of each of the product's blocks
};

template <class Tile, class Args, class Done>
RNNFAST_DEVICE void multiply(const Args& args, const Done& done) {
  multiply<Tile>(args.step, args.product, int64_t(block_y()) * Tile::kRows, block_x() / args.tiles,
                 block_x() % args.tiles * kUnits, done);
}

// Own: a generated body, with unit(j, sums).
template <class Own, class Tile, class Args>
RNNFAST_KERNEL(kProductThreads)
own_fused(RNNFAST_ARGS Args args) {
  multiply<Tile>(
      args, [&](const Sequence& q, int64_t j, const float* x) { Own(args.step, q).unit(j, x); });
}

template <class Tile, class Args>
RNNFAST_KERNEL(kProductThreads)
own_product(RNNFAST_ARGS Args args) {
  multiply<Tile>(args, [&](const Sequence& q, int64_t j, const float* x) {
    const Body own(args.step, q);
    for (int p = 0; p < decltype(args.product)::planes; ++p) {
      const Place& to = args.product.to[p];
      store(own.row(int(to.row)) + to.offset + j, x[p]);
    }
  });
}

}  // namespace rnnfast::cuda::steps
