// A scan by the host kernels: what rnnfast/backends/cpu.py does in Python.
#include "cpu/call.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

using Made = cpu::Made<Tensor>;

Optional plain_or_none(const Optional& tensor, ScalarType dtype) {
  return tensor ? Optional(plain(*tensor, dtype)) : std::nullopt;
}

template <class X>
void run(const Scan& scan, const Made& made) {
  const ScalarType dtype = scan.storage;
  const Weights& w = scan.weights;
  const cpu::Given<Tensor> given{scan.cell,
                                 scan.T,
                                 scan.B,
                                 scan.H,
                                 scan.P,
                                 scan.reverse,
                                 scan.saves,
                                 plain(*w.w_hh, dtype),
                                 plain(scan.h0, dtype),
                                 plain_or_none(w.b_hh, dtype),
                                 plain_or_none(w.w_hr, dtype),
                                 plain_or_none(scan.c0, dtype),
                                 scan.lengths,
                                 scan.resets};
  const std::optional<cpu::GivenInput<Tensor>> no_input;
  cpu::forward<X>(given, no_input, made, cpu::threads_of(int(torch::stable::get_num_threads())));
}

// Memory for what a scan makes.
Made room_for(const Scan& scan) {
  const int64_t T = scan.T, B = scan.B, H = scan.H, P = scan.P;
  const CellInfo& cell = scan.cell;
  const ScalarType dtype = scan.storage;
  Made made{empty({T, B, P}, dtype), empty({B, P}, dtype), projected(scan)};
  if (cell.states == 2) made.c_last = empty({B, H}, dtype);
  if (cell.states == 2 && (scan.saves || scan.all_states)) made.c = empty({T, B, H}, dtype);
  if (cell.has_extra()) made.extra = empty(scan.saves ? Shape{T, B, H} : Shape{B, H}, dtype);
  if (scan.saves && dtype != scan.wide() && !cell.saves_output)
    made.fixed = empty({T, B, scan.gate_width()}, ScalarType::Short);
  return made;
}

// In the order in which KernelBackend.saved_names has them.
std::vector<Tensor> saved(const Scan& scan, const Made& made) {
  std::vector<Tensor> found;
  if (!scan.saves) return found;
  if (!scan.cell.saves_output) found.push_back(made.fixed ? *made.fixed : *made.gates);
  if (made.extra) found.push_back(*made.extra);
  if (made.c && !scan.all_states) found.push_back(*made.c);
  return found;
}

}  // namespace

Outputs forward(const Scan& scan) {
  const Made made = room_for(scan);
  if (scan.B > 0) {
    cpu::with_storage(scan.storage,
                      [&](auto stored) { run<typename decltype(stored)::Type>(scan, made); });
  }
  std::vector<Tensor> final{made.h_last}, trace;
  if (made.c_last) final.push_back(*made.c_last);
  if (made.c && scan.all_states) trace.push_back(*made.c);
  return {made.y, final, trace, saved(scan, made)};
}

}  // namespace rnnfast::ops
