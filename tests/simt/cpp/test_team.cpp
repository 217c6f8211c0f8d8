// The CUDA kernels of teams of blocks on the executor, against the reference scan in double
// precision: in bf16, and in strict fp32, which the library has not but which shows the smallest
// mistake. (The Python matrix runs the others.)
#include <array>

#include "scan_checks.h"
#include "simt/executor.h"
#include "team_scan.h"

namespace {

using namespace team_scan;

TeamChoice choice_of(const Split& split, Pass pass, CellId cell, Math math, int64_t H) {
  const TeamShapeList list = team_shapes(pass, cell);
  const int blocks = int(team_blocks(pass, cell, H, split.blocks));
  for (int i = 0; i < list.size; ++i) {
    if (team_fits({split.kind, pass, cell, math, list.at[i]}, H, blocks, split.tiles, 227 * 1024)) {
      return {split.kind, math, i, blocks, split.teams, split.tiles};
    }
  }
  throw std::invalid_argument("no shape has room for H = " + std::to_string(H));
}

template <Pass kPass, class Args>
void launch_of(CellId cell, const TeamChoice& choice, const Args& args) {
  const Zeroed workspace(choice, kPass, cell, args.H, args.directions);
  void* zero = workspace.data();
  switch (choice.math) {
    case Math::kBf16:
      ask_team<kPass, MmaBf16>(TeamAsk::kLaunch, cell, choice, args, zero, nullptr);
      return;
    case Math::kFp32:
      ask_team<kPass, MmaFp32>(TeamAsk::kLaunch, cell, choice, args, zero, nullptr);
      return;
    default:
      throw std::invalid_argument("the C++ tests have bf16 and fp32 only");
  }
}

Launchers of_teams(CellId cell, Math math, int64_t H, const Split& split) {
  const TeamChoice forward = choice_of(split, Pass::kForward, cell, math, H);
  const TeamChoice backward = choice_of(split, Pass::kBackward, cell, math, H);
  return {
      [=](const ForwardArgs& args) { launch_of<Pass::kForward>(cell, forward, args); },
      [=](const BackwardArgs& args) { launch_of<Pass::kBackward>(cell, backward, args); },
  };
}

template <template <class> class Cell>
Launchers spilled_in(const Split& split) {
  return split.kind == TeamKind::kGrid ? spilled<Cell, GridTeam>(split)
                                       : spilled<Cell, ClusterTeam>(split);
}

Launchers spilled_of(CellId cell, const Split& split) {
  if (cell == CellId::kRnnTanh) return spilled_in<RnnTanh>(split);
  if (cell == CellId::kLstm) return spilled_in<Lstm>(split);
  if (cell == CellId::kGru) return spilled_in<Gru>(split);
  return spilled_in<GruResetBefore>(split);
}

template <class S>
void check_as(Math math, CellId cell, int64_t T, int64_t B, int64_t H,
              const cpu_scan::Option& option, const Split& split, float clip) {
  const Inputs in = rounded<S>(Inputs(cell, T, B, H, option));
  Run<S> got(in, of_teams(cell, math, H, split), clip);
  const std::string label = in.label() + " math " + std::to_string(int(math)) + " ";
  check_run(got, in, share_of(math), true, clip, label + split.label());
}

void check_team(Math math, CellId cell, int64_t T, int64_t B, int64_t H,
                const cpu_scan::Option& option, const Split& split, float clip = 0) {
  if (math == Math::kBf16) return check_as<Bf16>(math, cell, T, B, H, option, split, clip);
  check_as<float>(math, cell, T, B, H, option, split, clip);
}

constexpr Split kGrids[] = {{TeamKind::kGrid, 2, 2, 1}, {TeamKind::kGrid, 3, 1, 2}};
constexpr Split kCluster{TeamKind::kCluster, 2, 2, 1};

TEST(every_cell_math_and_option) {
  for (const CellId cell : kResident) {
    for (const Math math : {Math::kFp32, Math::kBf16}) {
      for (const cpu_scan::Option& option : cpu_scan::kOptions) {
        check_team(math, cell, 4, 10, 21, option, kGrids[0]);
        check_team(math, cell, 3, 9, 21, option, kCluster);
      }
      check_team(math, cell, 4, 10, 37, cpu_scan::kOptions[5], kGrids[1]);
    }
  }
}

TEST(clipped_in_time) {
  for (const CellId cell : kResident) {
    check_team(Math::kFp32, cell, 5, 10, 21, cpu_scan::kOptions[3], kGrids[1], 0.05f);
    check_team(Math::kFp32, cell, 5, 10, 21, cpu_scan::kOptions[5], kCluster, -0.05f);
  }
}

// One block; one step; a batch that fills no tile; more tiles than needed.
TEST(odd_sizes) {
  const Split splits[] = {{TeamKind::kGrid, 1, 2, 1},
                          {TeamKind::kGrid, 4, 2, 2},
                          {TeamKind::kCluster, 1, 2, 1},
                          {TeamKind::kCluster, 4, 2, 1}};
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 8, 16}, {2, 9, 17}, {5, 11, 33}};
  for (const CellId cell : kResident) {
    for (const auto& [T, B, H] : sizes) {
      for (const Split& split : splits) {
        if (split.blocks == 1 && H > 17) continue;
        if (split.kind == TeamKind::kCluster && B <= 8) {
          check_team(Math::kFp32, cell, T, B, H, cpu_scan::kOptions[5],
                     {split.kind, split.blocks, 1, 1});
        } else {
          check_team(Math::kFp32, cell, T, B, H, cpu_scan::kOptions[5], split);
        }
      }
    }
  }
}

TEST(weights_in_shared_memory) {
  for (const CellId cell : kResident) {
    if (cell == CellId::kRnnRelu) continue;
    for (const Split& split : {kGrids[1], Split{TeamKind::kCluster, 8, 2, 1}}) {
      const Split wide{split.kind, 8, split.teams, split.tiles};
      const Inputs in = rounded<float>(Inputs(cell, 3, 10, 150, cpu_scan::kOptions[5]));
      Run<float> got(in, spilled_of(cell, wide));
      check_run(got, in, share_of(Math::kFp32), true, 0, in.label() + " " + wide.label());
    }
  }
}

// Several slabs of a warp, many blocks.
TEST(larger_sizes) {
  for (const CellId cell : kResident) {
    check_team(Math::kBf16, cell, 2, 3, 300, cpu_scan::kOptions[0], {TeamKind::kGrid, 19, 1, 1});
    check_team(Math::kFp32, cell, 2, 3, 100, cpu_scan::kOptions[5], {TeamKind::kCluster, 8, 1, 1});
  }
}

TEST(other_schedules_same_bits) {
  for (const CellId cell : kResident) {
    for (const Split& split : {kGrids[0], kGrids[1], kCluster}) {
      const Inputs in = rounded<Bf16>(Inputs(cell, 4, 11, 33, cpu_scan::kOptions[5]));
      const Launchers launchers = of_teams(cell, Math::kBf16, 33, split);
      simt::set_schedule(simt::Schedule::kInOrder);
      Run<Bf16> first(in, launchers);
      simt::set_schedule(simt::Schedule::kReverse);
      Run<Bf16> reversed(in, launchers);
      CHECK_IN(reversed.dgates.numbers() == first.dgates.numbers(), in.label() + split.label());
      simt::set_schedule(simt::Schedule::kRandom);
      for (int seed = 1; seed <= 5; ++seed) {
        simt::set_seed(seed);
        Run<Bf16> again(in, launchers);
        CHECK_IN(again.y.numbers() == first.y.numbers(), in.label() + split.label());
        CHECK_IN(again.dh0.numbers() == first.dh0.numbers(), in.label() + split.label());
        CHECK_IN(again.dgates.numbers() == first.dgates.numbers(), in.label() + split.label());
      }
    }
  }
}

// Extra passes of shared memory, by simt::bank_conflicts, of a warp whose lanes access `width`
// bytes at address(lane).
template <class F>
int extra_passes(int width, const F& address) {
  std::array<uint32_t, 32> addresses;
  for (int lane = 0; lane < 32; ++lane) addresses[lane] = uint32_t(address(lane));
  return simt::bank_conflicts(addresses, width);
}

TEST(no_bank_conflicts) {
  for (int64_t slabs = 1; slabs <= 70; ++slabs) {
    const int64_t stride = team_row_stride(TeamKind::kCluster, slabs * kSlabBytes);
    CHECK(extra_passes(16, [&](int l) { return l / 4 * stride + (l & 3) * 16; }) == 0);
  }
  for (int64_t tiles = 1; tiles <= 8; ++tiles) {
    const int64_t stride = sum_stride(tiles);
    for (int j = 0; j < 2; ++j) {  // TeamProduct::keep
      CHECK(extra_passes(4, [&](int l) { return (((l & 3) * 2 + j) * stride + l / 4) * 4; }) == 0);
    }
    // TeamProduct::sum: 32 units of a sequence; of 16 units two sequences, in one pass more
    CHECK(extra_passes(4, [&](int l) { return l * 4; }) == 0);
    CHECK(extra_passes(4, [&](int l) { return (l / 16 * stride + l % 16) * 4; }) == 1);
  }
}

TEST(what_can_not_be_is_refused) {
  const Inputs in = rounded<Bf16>(Inputs(CellId::kLstm, 2, 9, 33, cpu_scan::kOptions[0]));
  const auto run = [&](const TeamChoice& choice) -> std::string {
    Launchers launchers;
    launchers.forward = [&](const ForwardArgs& args) {
      launch_of<Pass::kForward>(CellId::kLstm, choice, args);
    };
    try {
      Run<Bf16> got(in, launchers);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "";
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(run({TeamKind::kGrid, Math::kBf16, 5, 2, 2, 1}), "there is no such shape"));
  CHECK(has(run({TeamKind::kGrid, Math::kBf16, 0, 1, 2, 1}), "hidden size 33 does not fit"));
  CHECK(has(run({TeamKind::kGrid, Math::kBf16, 0, 3, 1, 1}), "too few for a batch of 9"));
  CHECK(has(run({TeamKind::kGrid, Math::kBf16, 0, 6, 2, 1}), "hidden size 33 does not fit"));
  CHECK(has(run({TeamKind::kCluster, Math::kBf16, 0, 3, 1, 2}), "hidden size 33 does not fit"));
  simt::Device small;
  small.sm_count = 1, small.blocks_per_sm = 5;
  simt::set_device(small);
  const std::string refused = run({TeamKind::kGrid, Math::kBf16, 0, 3, 2, 1});
  simt::set_device(simt::Device{});
  CHECK_IN(has(refused, "of its 6 blocks at once"), refused);
}

}  // namespace
