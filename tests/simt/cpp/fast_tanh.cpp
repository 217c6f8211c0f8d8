// How far the outputs of the resident forward kernels are from float64, 16-bit storage: a line for
// each cell and dtype, "cell dtype rms largest", of all h over many steps. Compiled with and without
// RNNFAST_FAST_TANH (test_fast_tanh.py).
#include <cmath>
#include <cstdio>
#include <string>

#include "cuda/solo/dispatch.h"
#include "sequence_scan.h"

namespace rnnfast::cuda {

template <template <class> class Cell, class Mma>
void run(const ForwardArgs& args) {
  const Launch how{"sequence_forward", (args.B + 7) / 8, args.directions, kThreads,
                   int(shared_bytes(Pass::kForward, kIdOf<Cell>, Mma::kMath, {1, 1}, args.H))};
  launch(how, &sequence_forward<Cell, Mma, SoloTeam, 1, 1>, args, nullptr);
}

template <class Mma>
void run_cell(CellId cell, const ForwardArgs& args) {
  if (cell == CellId::kRnnTanh) return run<RnnTanh, Mma>(args);
  if (cell == CellId::kLstm) return run<Lstm, Mma>(args);
  run<Gru, Mma>(args);
}

// In place of solo/sequence.cu's.
void launch_sequence_forward(CellId cell, SoloChoice choice, const ForwardArgs& args, Stream) {
  if (choice.math == Math::kBf16) return run_cell<MmaBf16>(cell, args);
  run_cell<MmaF16>(cell, args);
}
void launch_sequence_backward(CellId, SoloChoice, const BackwardArgs&, Stream) {}

}  // namespace rnnfast::cuda

namespace {

using namespace sequence_scan;

template <class S>
void measure(CellId cell, Math math) {
  const Inputs in = rounded<S>(Inputs(cell, 100, 8, 64, cpu_scan::kOptions[0]));
  const Expected want(in, 0);
  Run<S> got(in, math, 0, -1);
  const Numbers y = got.y.numbers();
  double squares = 0, largest = 0;
  for (size_t k = 0; k < y.size(); ++k) {
    const double off = y[k] - want.y[k];
    squares += off * off;
    largest = std::fmax(largest, std::fabs(off));
  }
  std::printf("%s %s %.3e %.3e\n", std::string(cell_info(cell).name).c_str(),
              std::string(name_of(math)).c_str(), std::sqrt(squares / double(y.size())), largest);
}

}  // namespace

int main() {
  for (const CellId cell : {CellId::kRnnTanh, CellId::kLstm, CellId::kGru}) {
    measure<Bf16>(cell, Math::kBf16);
    measure<F16>(cell, Math::kF16);
  }
}
