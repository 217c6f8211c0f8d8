// Saved gates in 16-bit fixed point, as 16-bit storage has them: what forward writes, what backward
// makes of it, and NaNs.
#include "cpu_scan.h"

namespace {

using namespace cpu_scan;

// Half a unit of fixed point, and what float's product with its 16 bits loses.
constexpr double kHalfUnit = 0.5 / 32767 * 1.01;

double decoded(int16_t fixed) { return fixed == -32768 ? kNaN : fixed / 32767.0; }

bool has_gates(const CellInfo& cell) { return cell.bounded_gates; }

// The largest difference, relative to the largest value.
double distance(const Buffer<float>& found, const Buffer<float>& expected) {
  double off = 0, scale = 1e-3;
  for (int64_t k = 0; k < expected.size(); ++k) {
    off = std::fmax(off, std::fabs(double(found[k]) - expected[k]));
    scale = std::fmax(scale, std::fabs(double(expected[k])));
  }
  return off / scale;
}

void check_forward(const Inputs& in, const Run<float>& fixed, const Run<float>& plain) {
  for (const auto part : {&Run<float>::y, &Run<float>::c, &Run<float>::h_last, &Run<float>::c_last,
                          &Run<float>::extra}) {
    CHECK_IN((fixed.*part).same_bits(plain.*part), in.label());
  }
  const int64_t width = in.p.gate_width();
  for (int64_t k = 0; k < plain.gates.size(); ++k) {
    if (!in.alive(k / width)) continue;
    const double off = std::fabs(decoded(fixed.fixed[k]) - plain.gates[k]);
    if (!(off <= kHalfUnit)) CHECK_IN(off <= kHalfUnit, in.label() + " gate " + std::to_string(k));
  }
}

void check_backward(const Inputs& in, const Run<float>& fixed, const Run<float>& plain) {
  constexpr double kTolerance = 5e-4;  // bfloat16's unit is 8e-3
  for (const auto part : {&Run<float>::dgx, &Run<float>::dgh_own, &Run<float>::dh_total,
                          &Run<float>::dh0, &Run<float>::dc0}) {
    const double off = distance(fixed.*part, plain.*part);
    CHECK_IN(off <= kTolerance, in.label() + " off by " + check::show(off));
  }
}

void check_splits(const cpu::Kernels& kernels, const Inputs& in, const Run<float>& alone) {
  for (const cpu::Split split : {cpu::Split{2, 1}, cpu::Split{1, 2}}) {
    const Run<float> run(kernels, in, split, true, true, true);
    const int64_t width = in.p.gate_width();
    for (int64_t k = 0; k < alone.gates.size(); ++k) {
      const bool same = !in.alive(k / width) || run.fixed[k] == alone.fixed[k];
      if (!same) CHECK_IN(same, in.label() + " gate " + std::to_string(k));
    }
    CHECK_IN(run.dgx.same_bits(alone.dgx) && run.dh0.same_bits(alone.dh0), in.label());
  }
}

void check_size(int64_t T, int64_t B, int64_t H) {
  for (const CellInfo& cell : kCells) {
    if (!has_gates(cell)) continue;
    for (const Option& option : kOptions) {
      const Inputs in(cell.id, T, B, H, option);
      for (const cpu::Kernels* kernels : present()) {
        const Run<float> plain(*kernels, in, {1, 1}, true, true);
        const Run<float> fixed(*kernels, in, {1, 1}, true, true, true);
        check_forward(in, fixed, plain);
        check_backward(in, fixed, plain);
        check_splits(*kernels, in, fixed);
      }
    }
  }
}

}  // namespace

TEST(less_than_a_vector) { check_size(5, 5, 5); }
TEST(whole_vectors_and_a_rest) { check_size(5, 13, 70); }

// Saturated gates are exactly 0, 1 and -1 again: a closed gate lets nothing through.
TEST(saturated_gates_are_exact) {
  for (const double value : {1e4, -1e4}) {
    Inputs in(CellId::kLstm, 2, 3, 37, kOptions[0]);
    std::fill(in.gx.begin(), in.gx.end(), value);
    for (const cpu::Kernels* kernels : present()) {
      const Run<float> run(*kernels, in, {1, 1}, true, true, true);
      for (const int16_t gate : run.fixed) CHECK(gate == 0 || gate == 32767 || gate == -32767);
      for (int64_t k = 0; k < run.dgx.size(); ++k) CHECK(run.dgx[k] == 0);
    }
  }
}

TEST(a_nan_is_kept) {
  for (const CellInfo& cell : kCells) {
    if (!has_gates(cell)) continue;
    Inputs in(cell.id, 1, 2, 37, kOptions[0]);
    const int64_t width = in.p.gate_width();
    std::fill(in.gx.begin(), in.gx.begin() + width, kNaN);  // of the first of two sequences
    for (const cpu::Kernels* kernels : present()) {
      const Run<float> run(*kernels, in, {1, 1}, true, true, true);
      for (int64_t k = 0; k < run.dgx.size(); ++k) {
        CHECK_IN(std::isnan(run.dgx[k]) == (k < width), in.label() + std::to_string(k));
      }
    }
  }
}
