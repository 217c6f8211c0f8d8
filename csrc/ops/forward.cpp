// A scan by the host kernels: what rnnfast/backends/cpu.py does in Python.
#include "cpu/crowd.h"
#include "cpu/host.h"
#include "cpu/kernels.h"
#include "ops/scan.h"

namespace rnnfast::ops {
namespace {

bool call(CellId id, const cpu::Forward<float>& f) { return cpu::kernels().forward_f32(id, f); }
bool call(CellId id, const cpu::Forward<double>& f) { return cpu::kernels().forward_f64(id, f); }

// In the wide dtype, but for `fixed`. Empty: the cell has none, or nobody wants it.
struct Made {
  Tensor gates, y, h_last;
  Optional fixed{}, c_last{}, c{}, extra{};
};

Optional plain_or_none(const Optional& tensor, ScalarType dtype) {
  return tensor ? Optional(plain(*tensor, dtype)) : std::nullopt;
}

template <class S>
void run(const Scan& scan, const Made& made) {
  const ScalarType dtype = scan.wide();
  const Tensor w_hh = plain(*scan.weights.w_hh, dtype), h0 = plain(scan.h0, dtype);
  const Optional b_hh = plain_or_none(scan.weights.b_hh, dtype),
                 w_hr = plain_or_none(scan.weights.w_hr, dtype), c0 = plain_or_none(scan.c0, dtype);
  const int threads = cpu::threads_of(int(torch::stable::get_num_threads()));
  const HostPlan plan =
      plan_host(scan.cell, scan.B, scan.H, scan.P, sizeof(S), cpu::host_with(threads));
  cpu::Forward<S> f;
  f.T = scan.T, f.B = scan.B, f.H = scan.H, f.P = scan.P;
  f.reverse = scan.reverse, f.training = scan.saves;
  f.split = {plan.rows, crowd().known() ? 1 : plan.units};
  f.w_hh = data<const S>(w_hh), f.b_hh = data<const S>(b_hh), f.w_hr = data<const S>(w_hr);
  f.lengths = data<const int64_t>(scan.lengths), f.resets = data<const bool>(scan.resets);
  f.h0 = data<const S>(h0), f.c0 = data<const S>(c0);
  f.gates = data<S>(made.gates), f.fixed = data<int16_t>(made.fixed);
  f.extra = data<S>(made.extra), f.y = data<S>(made.y), f.c = data<S>(made.c);
  f.h_last = data<S>(made.h_last), f.c_last = data<S>(made.c_last);
  f.workspace =
      scratch(cpu::kernels().workspace(scan.cell.id, scan.B, scan.H, scan.P, sizeof(S), f.split));
  if (call(scan.cell.id, f)) crowd().seen();
}

// Memory for what a scan makes.
Made room_for(const Scan& scan) {
  const int64_t T = scan.T, B = scan.B, H = scan.H, P = scan.P;
  const CellInfo& cell = scan.cell;
  const ScalarType dtype = scan.wide();
  Made made{projected(scan), empty({T, B, P}, dtype), empty({B, P}, dtype)};
  if (cell.states == 2) made.c_last = empty({B, H}, dtype);
  if (cell.states == 2 && (scan.saves || scan.all_states)) made.c = empty({T, B, H}, dtype);
  if (cell.has_extra()) made.extra = empty(scan.saves ? Shape{T, B, H} : Shape{B, H}, dtype);
  if (scan.saves && dtype != scan.storage && !cell.saves_output)
    made.fixed = empty({T, B, scan.gate_width()}, ScalarType::Short);
  return made;
}

// In the order in which KernelBackend.saved_names has them.
std::vector<Tensor> saved(const Scan& scan, const Made& made) {
  std::vector<Tensor> found;
  if (!scan.saves) return found;
  if (!scan.cell.saves_output) found.push_back(made.fixed ? *made.fixed : made.gates);
  if (made.extra) found.push_back(cast(*made.extra, scan.storage));
  if (made.c && !scan.all_states) found.push_back(cast(*made.c, scan.storage));
  return found;
}

}  // namespace

Outputs forward(const Scan& scan) {
  const Made made = room_for(scan);
  if (scan.B > 0)
    scan.wide() == ScalarType::Float ? run<float>(scan, made) : run<double>(scan, made);
  std::vector<Tensor> final{cast(made.h_last, scan.storage)}, trace;
  if (made.c_last) final.push_back(cast(*made.c_last, scan.storage));
  if (made.c && scan.all_states) trace.push_back(cast(*made.c, scan.storage));
  return {cast(made.y, scan.storage), final, trace, saved(scan, made)};
}

}  // namespace rnnfast::ops
