// The resident CUDA kernels on the executor, against the reference scan in double precision.
#include <algorithm>
#include <cmath>
#include <string>

#include "sequence_scan.h"
#include "simt/executor.h"

namespace {

using namespace sequence_scan;

constexpr CellId kResident[] = {CellId::kRnnTanh, CellId::kRnnRelu, CellId::kLstm, CellId::kGru,
                                CellId::kGruResetBefore};

// |a − b| within `share` of the largest |b|.
void compare(const Numbers& a, const Numbers& b, double share, const std::string& what) {
  CHECK_IN(a.size() == b.size(), what);
  double largest = 0, off = 0;
  for (size_t k = 0; k < b.size(); ++k) {
    largest = std::max(largest, std::fabs(b[k]));
    const double distance = std::fabs(a[k] - b[k]);
    off = distance <= off ? off : distance;  // a NaN wins
  }
  CHECK_IN(off <= share * std::max(largest, 1e-6),
           what + ": off by " + check::show(off) + " of " + check::show(largest));
}

template <class S>
void check_run(Math math, double share, CellId cell, int64_t T, int64_t B, int64_t H,
               const cpu_scan::Option& option, int forward_shape = 0, int backward_shape = 0) {
  const Inputs in = rounded<S>(Inputs(cell, T, B, H, option));
  const Expected want(in);
  Run<S> got(in, math, forward_shape, backward_shape);
  const std::string label = in.label() + " math " + std::to_string(int(math)) + " shapes " +
                            std::to_string(forward_shape) + ", " + std::to_string(backward_shape);
  compare(got.y.numbers(), want.y, share, label + " y");
  compare(got.h_last.numbers(), want.h_last, share, label + " h_last");
  compare(got.c_last.numbers(), want.c_last, share, label + " c_last");
  compare(got.c.numbers(), want.c, share, label + " c");
  // relu's slope jumps where a rounded sum passes 0
  if (backward_shape < 0 || (cell == CellId::kRnnRelu && math != Math::kFp32)) return;
  compare(got.dh0.numbers(), want.dh0, share, label + " dh0");
  compare(got.dc0.numbers(), want.dc0, share, label + " dc0");
  compare(got.dgx(), want.dgx, share, label + " dgx");
  compare(got.db_hh(), want.db_hh, share, label + " db_hh");
}

void check_math(Math math, CellId cell, int64_t T, int64_t B, int64_t H,
                const cpu_scan::Option& option, int forward_shape = 0, int backward_shape = 0) {
  switch (math) {
    case Math::kFp32:
      return check_run<float>(math, 1e-5, cell, T, B, H, option, forward_shape, backward_shape);
    case Math::kTf32:
      return check_run<float>(math, 4e-3, cell, T, B, H, option, forward_shape, backward_shape);
    case Math::kBf16:
      return check_run<Bf16>(math, 3e-2, cell, T, B, H, option, forward_shape, backward_shape);
    case Math::kF16:
      return check_run<F16>(math, 4e-3, cell, T, B, H, option, forward_shape, backward_shape);
  }
}

constexpr Math kMaths[] = {Math::kFp32, Math::kTf32, Math::kBf16, Math::kF16};

TEST(every_cell_math_and_option) {
  for (const CellId cell : kResident) {
    for (const Math math : kMaths) {
      for (const cpu_scan::Option& option : cpu_scan::kOptions)
        check_math(math, cell, 4, 3, 9, option);
    }
  }
}

TEST(odd_sizes) {
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 8, 16}, {2, 9, 17}, {5, 11, 33}, {2, 1, 64}};
  for (const CellId cell : kResident) {
    for (const auto& [T, B, H] : sizes) {
      check_math(Math::kBf16, cell, T, B, H, cpu_scan::kOptions[5]);
      check_math(Math::kFp32, cell, T, B, H, cpu_scan::kOptions[5]);
    }
  }
}

// Weights beyond the registers, several groups of a warp, and warps without one.
TEST(every_shape) {
  for (const CellId cell : kResident) {
    for (const Math math : kMaths) {
      for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
        const ShapeList list = shapes(pass, cell, math);
        for (int i = 0; i < list.size; ++i) {
          int64_t H = 264;
          while (!fits(pass, cell, math, list.at[i], H, 227 * 1024)) H -= 3;
          const Pass other = pass == Pass::kForward ? Pass::kBackward : Pass::kForward;
          const int beside = first_fit(other, cell, math, H, 227 * 1024);
          const bool forward = pass == Pass::kForward;
          if (!forward && beside < 0) continue;
          check_math(math, cell, 2, 2, H, cpu_scan::kOptions[0], forward ? i : beside,
                     forward ? beside : i);
        }
      }
    }
  }
}

TEST(more_steps_than_16_bits_count) {
  check_run<float>(Math::kFp32, 1e-5, CellId::kRnnTanh, 66000, 1, 1, cpu_scan::kOptions[4], 0, -1);
}

TEST(other_schedules_same_bits) {
  for (const CellId cell : kResident) {
    const Inputs in = rounded<Bf16>(Inputs(cell, 5, 9, 33, cpu_scan::kOptions[5]));
    simt::set_schedule(simt::Schedule::kInOrder);
    Run<Bf16> first(in, Math::kBf16, 0, 0);
    simt::set_schedule(simt::Schedule::kRandom);
    for (int seed = 1; seed <= 5; ++seed) {
      simt::set_seed(seed);
      Run<Bf16> again(in, Math::kBf16, 0, 0);
      CHECK_IN(again.y.numbers() == first.y.numbers(), in.label());
      CHECK_IN(again.dh0.numbers() == first.dh0.numbers(), in.label());
      CHECK_IN(again.dgates.numbers() == first.dgates.numbers(), in.label());
    }
  }
}

}  // namespace
