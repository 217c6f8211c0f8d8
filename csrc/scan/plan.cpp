#include "scan/plan.h"

#include <algorithm>

namespace rnnfast {
namespace {

// Measured on one core of a Xeon with AVX-512 at 2 GHz nominal; the choice needs their order of
// magnitude only.
constexpr double kFlopsPerNsPerByte = 1.0;  // of the product, for each byte of a vector
constexpr double kL2BytesPerNs = 50, kL3BytesPerNs = 12;
constexpr double kPointwiseNsPerVector = 12;  // for each gate
constexpr double kBarrierNs = 400;
constexpr double kTeamNs = 300;  // opening a team of threads, spread over some thirty steps

double step_ns(const StepCost& step, int64_t B, int64_t H, Widths widths, const Host& host,
               int rows, int units) {
  const double weights = step.weights / units;  // of one thread
  const double own_rows = double((B + rows - 1) / rows);
  const double multiply = product_ns(weights * own_rows, widths.packed, host.vector_bytes);
  const double bytes = weights * widths.packed;
  const double load =
      bytes / (bytes < 0.75 * double(host.l2_bytes) ? kL2BytesPerNs : kL3BytesPerNs);
  const double lanes = double(host.vector_bytes) / widths.computed;
  const double pointwise =
      own_rows * std::max(1.0, double(H) / lanes / units) * step.gates * kPointwiseNsPerVector;
  const int barriers = units == 1 ? 0 : step.meetings;
  const double team = rows * units == 1 ? 0 : kTeamNs;
  return std::max(multiply, load) + pointwise + team + barriers * kBarrierNs * (1 + 0.1 * units);
}

}  // namespace

double product_ns(double multiply_adds, int width, int vector_bytes) {
  return 2 * multiply_adds * width / (kFlopsPerNsPerByte * vector_bytes * 4);
}

// Row parts with more than one unit part have a barrier each (cpu/team.h).
constexpr int kMaxSharedRows = 64;

HostPlan plan_host(const CellInfo& cell, int64_t B, int64_t H, int64_t P, Widths widths,
                   const Host& host) {
  const int64_t outputs = cell.gates * H + (cell.projected() ? H : 0);
  const StepCost step{double(outputs * P), cell.gates, cell.phase_count};
  return plan_host(step, B, H, widths, host);
}

HostPlan plan_host(const StepCost& step, int64_t B, int64_t H, Widths widths, const Host& host) {
  HostPlan best;
  best.step_ns = step_ns(step, B, H, widths, host, 1, 1);
  // a panel of the backward product is four vectors wide: more unit parts would have nothing to do
  const int64_t panels = std::max<int64_t>(1, H * widths.computed / (4 * host.vector_bytes));
  for (int rows = 1; rows <= host.threads && rows <= std::max<int64_t>(B, 1); ++rows) {
    for (int units = 1; rows * units <= host.threads && units <= panels; ++units) {
      if (units > 1 && rows > kMaxSharedRows) break;
      const double ns = step_ns(step, B, H, widths, host, rows, units);
      if (ns < best.step_ns) best = {rows, units, ns};
    }
  }
  return best;
}

std::string HostPlan::describe() const {
  const std::string threads =
      std::to_string(rows * units) + (rows * units == 1 ? " thread" : " threads");
  if (resident()) {
    return "resident: " + threads + ", each with its own sequences for all steps";
  }
  return "stepwise: " + threads + ", " + std::to_string(rows) + " x " + std::to_string(units) +
         " parts of the batch x hidden units, which meet at every step";
}

}  // namespace rnnfast
