// What the mutants of the kernels of teams of blocks are judged by, as mutant.cpp those of one
// block: every cell in strict fp32, one in bf16, over both kinds of team, with weights in registers
// and in shared memory, several teams, batch tiles and options, under random schedules. Ends with 1
// and the first difference where the kernels are wrong. RNNFAST_PART says which part of it is
// compiled: cell by cell in grids (even numbers) and in clusters; last the one in bf16.
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>

#include "simt/executor.h"
#include "team_scan.h"

namespace rnnfast::cuda {  // one block's kernels take no part

void launch_sequence_forward(CellId, SoloChoice, const ForwardArgs&, Stream) {}
void launch_sequence_backward(CellId, SoloChoice, const BackwardArgs&, Stream) {}

}  // namespace rnnfast::cuda

namespace {

using namespace team_scan;

bool same(const Numbers& a, const Numbers& b, double share, const std::string& what) {
  double largest = 0, off = 0;
  for (size_t k = 0; k < b.size(); ++k) {
    largest = std::fmax(largest, std::fabs(b[k]));
    const double distance = std::fabs(a[k] - b[k]);
    off = distance <= off ? off : distance;
  }
  if (off <= share * largest) return true;
  std::printf("%s: off by %g of %g\n", what.c_str(), off, largest);
  return false;
}

template <class S>
bool right(const Inputs& in, const Launchers& launchers, double share, float clip,
           const std::string& label) {
  const Expected want(in, clip);
  Run<S> got(in, launchers, clip);
  return same(got.y.numbers(), want.y, share, label + " y") &&
         same(got.h_last.numbers(), want.h_last, share, label + " h_last") &&
         same(got.c_last.numbers(), want.c_last, share, label + " c_last") &&
         same(got.c.numbers(), want.c, share, label + " c") &&
         same(got.dh0.numbers(), want.dh0, share, label + " dh0") &&
         same(got.dc0.numbers(), want.dc0, share, label + " dc0") &&
         same(got.dgx(), want.dgx, share, label + " dgx") &&
         same(got.db_hh(), want.db_hh, share, label + " db_hh");
}

template <template <class> class Cell, class Team>
bool right(const Split& split, int64_t T, int64_t B, int64_t H, const cpu_scan::Option& option,
           float clip = 0) {
  const Inputs in = rounded<float>(Inputs(kIdOf<Cell>, T, B, H, option));
  return right<float>(in, spilled<Cell, Team>(split), 1e-5, clip, in.label() + " " + split.label());
}

template <template <class> class Cell>
bool right_in_grids() {
  for (const auto& [teams, tiles] : {std::pair{2, 1}, {1, 3}}) {
    const Split split{TeamKind::kGrid, 3, teams, tiles}, wide{TeamKind::kGrid, 8, teams, tiles};
    if (!right<Cell, GridTeam>(split, 5, 12, 37, cpu_scan::kOptions[5]) ||
        !right<Cell, GridTeam>(split, 4, 10, 40, cpu_scan::kOptions[5], 0.05f) ||
        !right<Cell, GridTeam>(wide, 2, 9, 160, cpu_scan::kOptions[1])) {
      return false;
    }
  }
  return true;
}

template <template <class> class Cell>
bool right_in_clusters() {
  const Split split{TeamKind::kCluster, 4, 2, 1}, wide{TeamKind::kCluster, 8, 2, 1};
  return right<Cell, ClusterTeam>(split, 5, 12, 37, cpu_scan::kOptions[5]) &&
         right<Cell, ClusterTeam>(split, 4, 10, 40, cpu_scan::kOptions[5], 0.05f) &&
         right<Cell, ClusterTeam>(wide, 2, 9, 160, cpu_scan::kOptions[1]);
}

// By tensor cores, whose slabs are loaded several at a time.
bool right_in_16_bit() {
  const Inputs in = rounded<Bf16>(Inputs(CellId::kLstm, 2, 3, 320, cpu_scan::kOptions[0]));
  const Launchers launchers = spilled<Lstm, GridTeam, MmaBf16>({TeamKind::kGrid, 10, 1, 1});
  return right<Bf16>(in, launchers, 3e-2, 0, in.label() + " bf16");
}

template <int kPart>
bool part_right() {
  static_assert(kPart >= 0 && kPart <= 8);
  if constexpr (kPart == 0) return right_in_grids<RnnTanh>();
  if constexpr (kPart == 1) return right_in_clusters<RnnTanh>();
  if constexpr (kPart == 2) return right_in_grids<Lstm>();
  if constexpr (kPart == 3) return right_in_clusters<Lstm>();
  if constexpr (kPart == 4) return right_in_grids<Gru>();
  if constexpr (kPart == 5) return right_in_clusters<Gru>();
  if constexpr (kPart == 6) return right_in_grids<GruResetBefore>();
  if constexpr (kPart == 7) return right_in_clusters<GruResetBefore>();
  return right_in_16_bit();
}

}  // namespace

int main() {
  simt::set_resident_threads(256);  // a grid that is not cooperative runs block after block
  simt::set_seed(1);
  try {
    return part_right<RNNFAST_PART>() ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
