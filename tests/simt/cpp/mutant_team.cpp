// What the mutants of the kernels of teams of blocks are judged by, as mutant.cpp those of one
// block: every cell in strict fp32, one in bf16, over both kinds of team, with weights in registers
// and in shared memory, several teams, batch tiles and options, under random schedules. Ends with 1
// and the first difference where the kernels are wrong.
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>

#include "simt/executor.h"
#include "team_scan.h"

namespace rnnfast::cuda {  // one block's kernels take no part

void launch_sequence_forward(CellId, SoloChoice, const ForwardArgs&, Stream) {}
void launch_sequence_backward(CellId, SoloChoice, const BackwardArgs&, Stream) {}

}  // namespace rnnfast::cuda

namespace {

using namespace team_scan;

constexpr CellId kCells[] = {CellId::kRnnTanh, CellId::kLstm, CellId::kGru,
                             CellId::kGruResetBefore};
constexpr Split kSplits[] = {
    {TeamKind::kGrid, 3, 2, 1}, {TeamKind::kGrid, 3, 1, 3}, {TeamKind::kCluster, 4, 3, 1}};

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

bool right(CellId cell, const Split& split, int64_t T, int64_t B, int64_t H,
           const cpu_scan::Option& option, float clip) {
  const Inputs in = rounded<float>(Inputs(cell, T, B, H, option));
  const Split wide{split.kind, split.blocks,
                   split.kind == TeamKind::kCluster ? int(B + 7) / 8 : split.teams, split.tiles};
  return right<float>(in, spilled(cell, wide), 1e-5, clip, in.label() + " " + wide.label());
}

// By tensor cores, whose slabs are loaded several at a time.
bool right_in_16_bit() {
  const Inputs in = rounded<Bf16>(Inputs(CellId::kLstm, 2, 3, 320, cpu_scan::kOptions[0]));
  const Launchers launchers = spilled_cell<Lstm, MmaBf16>({TeamKind::kGrid, 10, 1, 1});
  return right<Bf16>(in, launchers, 3e-2, 0, in.label() + " bf16");
}

bool all_right() {
  for (int seed = 1; seed <= 1; ++seed) {
    simt::set_seed(seed);
    for (const CellId cell : kCells) {
      for (const Split& split : kSplits) {
        const Split wide{split.kind, 8, split.teams, split.tiles};
        if (!right(cell, split, 5, 12, 37, cpu_scan::kOptions[5], 0)) return false;
        if (!right(cell, split, 4, 10, 40, cpu_scan::kOptions[5], 0.05f)) return false;
        if (!right(cell, wide, 2, 9, 160, cpu_scan::kOptions[1], 0)) return false;
      }
    }
  }
  return right_in_16_bit();
}

}  // namespace

int main() {
  simt::set_resident_threads(256);  // a grid that is not cooperative runs block after block
  try {
    return all_right() ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
