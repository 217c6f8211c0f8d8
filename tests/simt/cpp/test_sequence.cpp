// The resident CUDA kernels on the executor, against the reference scan in double precision.
#include <string>

#include "scan_checks.h"
#include "simt/executor.h"

namespace {

using namespace sequence_scan;

template <class S>
void check_run(Math math, CellId cell, int64_t T, int64_t B, int64_t H,
               const cpu_scan::Option& option, int forward_shape = 0, int backward_shape = 0) {
  const Inputs in = rounded<S>(Inputs(cell, T, B, H, option));
  Run<S> got(in, math, forward_shape, backward_shape);
  check_run(got, in, share_of(math), backward_shape >= 0, 0,
            in.label() + " math " + std::to_string(int(math)) + " shapes " +
                std::to_string(forward_shape) + ", " + std::to_string(backward_shape));
}

void check_math(Math math, CellId cell, int64_t T, int64_t B, int64_t H,
                const cpu_scan::Option& option, int forward_shape = 0, int backward_shape = 0) {
  switch (math) {
    case Math::kFp32:
      return check_run<float>(math, cell, T, B, H, option, forward_shape, backward_shape);
    case Math::kTf32:
      return check_run<float>(math, cell, T, B, H, option, forward_shape, backward_shape);
    case Math::kBf16:
      return check_run<Bf16>(math, cell, T, B, H, option, forward_shape, backward_shape);
    case Math::kF16:
      return check_run<F16>(math, cell, T, B, H, option, forward_shape, backward_shape);
  }
}

TEST(every_cell_math_and_option) {
  for (const CellId cell : kResident) {
    for (const Math math : kEveryMath) {
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

// The matrix is loaded in 16 bytes where its rows are aligned, else value by value.
TEST(weights_anywhere) {
  for (const CellId cell : kResident) {
    for (const Math math : kEveryMath) {
      for (const int64_t offset : {0, 1, 4, 8}) {
        weights_offset = offset;
        for (const int64_t H : {16, 20, 24, 26, 31}) {
          check_math(math, cell, 2, 2, H, cpu_scan::kOptions[0]);
        }
      }
    }
  }
  weights_offset = 0;
}

// Weights beyond the registers, several groups of a warp, and warps without one.
TEST(every_shape) {
  for (const CellId cell : kResident) {
    for (const Math math : kEveryMath) {
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
  check_run<float>(Math::kFp32, CellId::kRnnTanh, 66000, 1, 1, cpu_scan::kOptions[4], 0, -1);
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
