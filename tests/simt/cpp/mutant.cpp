// What the mutants of the resident kernels are judged by: every cell in two ways of the product, one
// in a third, in shapes that use registers, shared memory and idle warps, with weights that may be
// loaded in 16 bytes and that may not, against the reference, under random schedules. One file, so that a mutant compiles in seconds. Ends with 1 and the first difference
// where the kernels are wrong.
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>

#include "cuda/solo/dispatch.h"
#include "sequence_scan.h"
#include "simt/executor.h"

namespace rnnfast::cuda {

// The smallest shapes of the library, and for one cell weights that do not fit the registers.
template <template <class> class Cell, class Mma, int kHeldForward, int kHeldBackward>
struct Small {
  static void forward(ForwardArgs args) {
    args.relu = false;
    const Launch how{
        "sequence_forward", (args.B + 7) / 8, args.directions, kThreads,
        int(shared_bytes(Pass::kForward, kIdOf<Cell>, Mma::kMath, {1, kHeldForward}, args.H))};
    launch(how, &sequence_forward<Cell, Mma, SoloTeam, 1, kHeldForward>, args, nullptr);
  }
  static void backward(BackwardArgs args) {
    const Launch how{
        "sequence_backward", (args.B + 7) / 8, args.directions, kThreads,
        int(shared_bytes(Pass::kBackward, kIdOf<Cell>, Mma::kMath, {1, kHeldBackward}, args.H))};
    launch(how, &sequence_backward<Cell, Mma, SoloTeam, 1, kHeldBackward>, args, nullptr);
  }
};

template <template <class> class Cell>
struct OfCell {
  static void forward(SoloChoice choice, const ForwardArgs& args) {
    if (choice.math == Math::kBf16) return Small<Cell, MmaBf16, 1, 2>::forward(args);
    return Small<Cell, MmaFp32, 1, 2>::forward(args);
  }
  static void backward(SoloChoice choice, const BackwardArgs& args) {
    if (choice.math == Math::kBf16) return Small<Cell, MmaBf16, 1, 2>::backward(args);
    return Small<Cell, MmaFp32, 1, 2>::backward(args);
  }
};

// In place of solo/sequence.cu's.
void launch_sequence_forward(CellId cell, SoloChoice choice, const ForwardArgs& args, Stream) {
  if (choice.math == Math::kTf32) return Small<Lstm, MmaTf32, 1, 2>::forward(args);
  if (cell == CellId::kRnnTanh) return OfCell<RnnTanh>::forward(choice, args);
  if (cell == CellId::kLstm) return OfCell<Lstm>::forward(choice, args);
  if (cell == CellId::kGru) return OfCell<Gru>::forward(choice, args);
  return OfCell<GruResetBefore>::forward(choice, args);
}

void launch_sequence_backward(CellId cell, SoloChoice choice, const BackwardArgs& args, Stream) {
  if (choice.math == Math::kTf32) return Small<Lstm, MmaTf32, 1, 2>::backward(args);
  if (cell == CellId::kRnnTanh) return OfCell<RnnTanh>::backward(choice, args);
  if (cell == CellId::kLstm) return OfCell<Lstm>::backward(choice, args);
  if (cell == CellId::kGru) return OfCell<Gru>::backward(choice, args);
  return OfCell<GruResetBefore>::backward(choice, args);
}

}  // namespace rnnfast::cuda

namespace {

using namespace sequence_scan;

constexpr CellId kCells[] = {CellId::kRnnTanh, CellId::kLstm, CellId::kGru,
                             CellId::kGruResetBefore};

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
bool right(Math math, CellId cell, double share, int64_t T, int64_t B, int64_t H,
           const cpu_scan::Option& option, float clip) {
  const Inputs in = rounded<S>(Inputs(cell, T, B, H, option));
  const Expected want(in, clip);
  Run<S> got(in, math, 0, 0, clip);
  const std::string label = in.label() + " math " + std::to_string(int(math));
  return same(got.y.numbers(), want.y, share, label + " y") &&
         same(got.h_last.numbers(), want.h_last, share, label + " h_last") &&
         same(got.c_last.numbers(), want.c_last, share, label + " c_last") &&
         same(got.c.numbers(), want.c, share, label + " c") &&
         same(got.dh0.numbers(), want.dh0, share, label + " dh0") &&
         same(got.dc0.numbers(), want.dc0, share, label + " dc0") &&
         same(got.dgx(), want.dgx, share, label + " dgx") &&
         same(got.db_hh(), want.db_hh, share, label + " db_hh");
}

bool all_right() {
  for (int seed = 1; seed <= 3; ++seed) {
    simt::set_seed(seed);
    for (const CellId cell : kCells) {
      for (const int option : {5, 1, 3}) {
        const float clip = option == 3 ? 0.05f : 0.0f;
        const cpu_scan::Option& chosen = cpu_scan::kOptions[option];
        if (!right<float>(Math::kFp32, cell, 1e-5, 6, 10, 37, chosen, clip)) return false;
        if (!right<float>(Math::kFp32, cell, 1e-5, 1, 1, 16, chosen, clip)) return false;
        if (!right<Bf16>(Math::kBf16, cell, 3e-2, 6, 10, 37, chosen, 0)) return false;
        if (!right<Bf16>(Math::kBf16, cell, 3e-2, 2, 3, 48, chosen, 0)) return false;
      }
    }
    const auto& plain = cpu_scan::kOptions[0];
    if (!right<float>(Math::kTf32, CellId::kLstm, 3e-3, 3, 3, 36, plain, 0)) return false;
    weights_offset = 1;
    if (!right<Bf16>(Math::kBf16, CellId::kGru, 3e-2, 2, 3, 16, plain, 0)) return false;
    weights_offset = 0;
  }
  return true;
}

}  // namespace

int main() {
  try {
    return all_right() ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
