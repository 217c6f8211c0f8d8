// Whether a run of the resident kernels is right.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "check.h"
#include "sequence_scan.h"

namespace sequence_scan {

inline constexpr CellId kResident[] = {CellId::kRnnTanh, CellId::kRnnRelu, CellId::kLstm,
                                       CellId::kGru, CellId::kGruResetBefore};
inline constexpr Math kEveryMath[] = {Math::kFp32, Math::kTf32, Math::kBf16, Math::kF16};

// |a − b| within `share` of the largest |b|.
inline void compare(const Numbers& a, const Numbers& b, double share, const std::string& what) {
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

// What `got` computed of `in`, rounded to its dtype, in all outputs and gradients.
template <class S>
void check_run(Run<S>& got, const Inputs& in, double share, bool backward, float clip,
               const std::string& label) {
  const Expected want(in, clip);
  compare(got.y.numbers(), want.y, share, label + " y");
  compare(got.h_last.numbers(), want.h_last, share, label + " h_last");
  compare(got.c_last.numbers(), want.c_last, share, label + " c_last");
  compare(got.c.numbers(), want.c, share, label + " c");
  // relu's slope jumps where a rounded sum passes 0
  if (!backward || (in.p.cell == CellId::kRnnRelu && share > 1e-4)) return;
  compare(got.dh0.numbers(), want.dh0, share, label + " dh0");
  compare(got.dc0.numbers(), want.dc0, share, label + " dc0");
  compare(got.dgx(), want.dgx, share, label + " dgx");
  compare(got.db_hh(), want.db_hh, share, label + " db_hh");
}

// Of a comparison in this math.
constexpr double share_of(Math math) {
  return math == Math::kFp32 ? 1e-5 : math == Math::kBf16 ? 3e-2 : 4e-3;
}

}  // namespace sequence_scan
