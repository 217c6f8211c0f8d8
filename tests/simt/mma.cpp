// mma.sync: D (16 x 8) += A (16 x K) · B (K x 8), the fragments laid out as the PTX ISA draws them
// for m16n8k16 (16-bit operands) and m16n8k8 (tf32). A lane's group is lane / 4, its place in it
// lane % 4.
#include "simt/numbers.h"
#include "simt/report.h"
#include "simt/state.h"

namespace simt {
namespace {

constexpr int kRows = 16, kColumns = 8;

using Row = float __attribute__((vector_size(kColumns * sizeof(float))));

// Products and sums in float: within the accuracy of a tensor core, not its bits.
template <int K>
void multiply_add(const float (&a)[kRows][K], const Row (&b)[K], void* const* operands) {
  Row sums[kRows];
  for (int row = 0; row < kRows; ++row) {
    Row sum = {};
    for (int k = 0; k < K; ++k) sum += a[row][k] * b[k];
    sums[row] = sum;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* d = static_cast<const MmaOperands*>(operands[lane])->d;
    const int row = lane / 4, column = lane % 4 * 2;
    d[0] += sums[row][column];
    d[1] += sums[row][column + 1];
    d[2] += sums[row + 8][column];
    d[3] += sums[row + 8][column + 1];
  }
}

// A register holds two neighbours along k, the low half the first. Here the first ones of all pairs
// come before the second ones: k is 0, 2, …, 14, 1, 3, …, 15.
template <float (*kToFloat)(uint16_t)>
void mma_16bit(uint32_t, void* const* operands) {
  uint32_t a_pairs[kRows][8], b_pairs[8][kColumns];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<const MmaOperands*>(operands[lane]);
    const int group = lane / 4, pair = lane % 4;
    a_pairs[group][pair] = own.a[0];
    a_pairs[group + 8][pair] = own.a[1];
    a_pairs[group][pair + 4] = own.a[2];
    a_pairs[group + 8][pair + 4] = own.a[3];
    b_pairs[pair][group] = own.b[0];
    b_pairs[pair + 4][group] = own.b[1];
  }
  float a[kRows][16];
  Row b[16];
  for (int row = 0; row < kRows; ++row) {
    for (int pair = 0; pair < 8; ++pair) {
      a[row][pair] = kToFloat(static_cast<uint16_t>(a_pairs[row][pair]));
      a[row][pair + 8] = kToFloat(static_cast<uint16_t>(a_pairs[row][pair] >> 16));
    }
  }
  for (int pair = 0; pair < 8; ++pair) {
    for (int column = 0; column < kColumns; ++column) {
      b[pair][column] = kToFloat(static_cast<uint16_t>(b_pairs[pair][column]));
      b[pair + 8][column] = kToFloat(static_cast<uint16_t>(b_pairs[pair][column] >> 16));
    }
  }
  multiply_add(a, b, operands);
}

// A tensor core ignores the 13 low bits; a value that has any was not rounded.
float tf32_operand(uint32_t bits, int lane, Site site) {
  const float value = float_of(bits);
  if ((bits & 0x1FFFu) != 0 && value == value) {
    fail("mma_tf32: the operand " + hexadecimal(bits) + " is no tf32 number: to_tf32 is missing",
         *current->block->threads[current->warp->index * kLanes + lane], site);
  }
  return float_of(bits & 0xFFFFE000u);
}

void mma_tf32(uint32_t, void* const* operands) {
  float a[kRows][8];
  Row b[8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& own = *static_cast<const MmaOperands*>(operands[lane]);
    const auto value = [&](uint32_t bits) { return tf32_operand(bits, lane, own.site); };
    const int group = lane / 4, place = lane % 4;
    a[group][place] = value(own.a[0]);
    a[group + 8][place] = value(own.a[1]);
    a[group][place + 4] = value(own.a[2]);
    a[group + 8][place + 4] = value(own.a[3]);
    b[place][group] = value(own.b[0]);
    b[place + 4][group] = value(own.b[1]);
  }
  multiply_add(a, b, operands);
}

}  // namespace

const Operation kMmaBf16 = {"mma_bf16", mma_16bit<bf16_to_float>, false};
const Operation kMmaF16 = {"mma_f16", mma_16bit<f16_to_float>, false};
const Operation kMmaTf32 = {"mma_tf32", mma_tf32, false};

}  // namespace simt
