// The host kernels for Python, on CPU tensors that rnnfast/backends/cpu.py has prepared.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/call.h"
#include "cpu/threads.h"
#include "python/bind.h"
#include "python/input.h"
#include "python/module.h"
#include "python/scan.h"
#include "python/type.h"

namespace rnnfast::python {
namespace {

using Optional = std::optional<Tensor>;
using Given = cpu::Given<Tensor>;

HostPlan plan(const CellInfo& cell, int64_t B, int64_t H, int64_t P, Widths widths) {
  return plan_host(cell, B, H, P, widths, cpu::host_with(host_threads()));
}

Widths widths_of(ScalarType dtype) {
  check_type(is_number(dtype), "expected float32, float64, bfloat16 or float16, got ", dtype);
  return cpu::with_storage(dtype, [](auto x) { return cpu::widths<typename decltype(x)::Type>(); });
}

// Scans that run at once, each on one thread: threads share the scans, not a scan's sequences. The
// results are the same bits. Made, run and destroyed with the GIL: each holds its tensors.
class Jobs {
 public:
  void add(std::function<void()> job) { jobs_.push_back(std::move(job)); }
  int64_t count() const { return static_cast<int64_t>(jobs_.size()); }
  void run() {
    const int64_t count = this->count();
    const int n = static_cast<int>(std::min<int64_t>(count, host_threads()));
    std::exception_ptr error;
    std::atomic<bool> failed{false};
    if (n > 0) {
      const WithoutGil no_gil;
      cpu::on_threads(n, [&](int id, int found) {  // which no exception may leave
        for (int64_t k = id; k < count; k += found) {
          try {
            jobs_[k]();
          } catch (...) {
            if (!failed.exchange(true)) error = std::current_exception();
          }
        }
      });
    }
    jobs_.clear();
    if (error) std::rethrow_exception(error);
  }

 private:
  std::vector<std::function<void()>> jobs_;
};

// Runs what a scan is on so many threads, or leaves it to `jobs`, if there are any.
template <class Scan>
void run_or_leave(const std::optional<Ref>& jobs, const Scan& scan) {
  if (jobs) {
    check_type(Type<Jobs>::is(jobs->get()), "jobs must be what cpu_jobs() made");
    return held<Jobs>(jobs->get()).add([scan] { scan(1); });
  }
  const int threads = host_threads();
  const WithoutGil no_gil;
  scan(threads);
}

// The tensors that forward and backward have in common. steps: [T, B, …]
Given given(const std::string& name, const Tensor& steps, const Tensor& w_hh, const Optional& w_hr,
            const Tensor& h0, const Optional& c0, const Optional& lengths, const Optional& resets,
            bool reverse, bool training) {
  const CellInfo& cell = find_cell(name);
  const ScalarType dtype = w_hh.scalar_type();
  check_type(is_number(dtype), "expected float32, float64, bfloat16 or float16, got ", dtype);
  check_value(steps.dim() == 3 && w_hh.dim() == 2, "gates and x must be 3-D and w_hh 2-D");
  const int64_t T = steps.size(0), B = steps.size(1), H = w_hh.size(0) / cell.gates;
  const int64_t P = w_hh.size(1);
  check_value(T > 0 && H > 0 && P > 0, "sizes must be positive");
  check_value(cell.projected() || P == H, "w_hh must be square for each gate");
  check_value(cell.projected() == w_hr.has_value(), "w_hr is for projected cells");
  check_value((cell.states == 2) == c0.has_value(), "c0 is for cells with two states");
  return {cell,
          T,
          B,
          H,
          P,
          reverse,
          training,
          checked("w_hh", w_hh, dtype, {cell.gates * H, P}),
          checked("h0", h0, dtype, {B, P}),
          std::nullopt,
          checked("w_hr", w_hr, dtype, {P, H}),
          checked("c0", c0, dtype, {B, H}),
          checked("lengths", lengths, ScalarType::Long, {B}),
          checked("resets", resets, ScalarType::Bool, {T, B})};
}

// Whether the kernels can keep this cell's gates as 16-bit fixed point.
bool keeps_fixed(const CellInfo& cell, ScalarType dtype) {
  return wide(dtype) == ScalarType::Float && cell.bounded_gates;
}

using ForwardResult = std::tuple<Tensor, Tensor, Optional, Optional, Optional, Optional>;

// Runs a scan of x, if there is `input`, else of made.gates. What is made beside its last states,
// every c if `all_c`, is put into `made`, which is returned.
cpu::Made<Tensor> run_forward(const Given& in, std::optional<Input> input, cpu::Made<Tensor> made,
                              bool fixed, bool all_c, const std::optional<Ref>& jobs) {
  const ScalarType dtype = in.w_hh.scalar_type();
  const int64_t T = in.T, B = in.B, H = in.H, P = in.P, GH = in.cell.gates * H;
  check_value(!fixed || keeps_fixed(in.cell, dtype),
              "fixed is for cells with gates, not for float64");
  const bool saves = in.training && !in.cell.saves_output;
  const ScalarType summed = wide(dtype);
  const bool in_place = cpu::is_in_place(T, B);
  const bool large = input && !in_place && !with_input(in.cell, B, H, P, input->I, dtype);
  if (large || (input && saves && !fixed)) made.gates = empty({T, B, GH}, summed);
  if (saves && fixed) made.fixed = empty({T, B, GH}, ScalarType::Short);
  if (in.cell.states == 2 && all_c) made.c = empty({T, B, H}, dtype);
  if (in.cell.has_extra())
    made.extra = in.training ? empty({T, B, H}, dtype) : empty({B, H}, dtype);
  if (B > 0 && large) {
    const int threads = host_threads();
    cpu::with_storage(
        dtype, [&](auto x) { project<typename decltype(x)::Type>(*input, *made.gates, threads); });
    input.reset();
  }
  if (B > 0) {
    run_or_leave(jobs, [=](int threads) {
      cpu::with_storage(dtype, [&](auto x) {
        cpu::forward<typename decltype(x)::Type>(in, input, made, threads);
      });
    });
  }
  return made;
}

// `gates`: x·W_ihᵀ + b_ih, overwritten. Or x and the weights it is multiplied with, here.
// (y, last h, last c, every c, extra, gates); every c if `all_c`; if training extra, and what
// backward needs of the gates, `fixed`: in int16, unless they are float64. Of 16-bit tensors `gates`
// are float32. With `jobs` they are only written when those run.
ForwardResult forward(const std::string& name, const Optional& gates, const Optional& x,
                      const Optional& w_ih, const Optional& b_ih, bool fixed, const Tensor& w_hh,
                      const Optional& b_hh, const Optional& w_hr, const Tensor& h0,
                      const Optional& c0, const Optional& lengths, const Optional& resets,
                      bool reverse, bool training, bool all_c, const std::optional<Ref>& jobs) {
  check_value(gates || x, "gates or x must be given");
  Given in = given(name, x ? *x : *gates, w_hh, w_hr, h0, c0, lengths, resets, reverse, training);
  std::optional<Input> input;
  const ScalarType dtype = w_hh.scalar_type();
  const int64_t T = in.T, B = in.B, H = in.H, GH = in.cell.gates * H;
  if (x) input.emplace(input_of(*x, w_ih, b_ih, dtype, GH));
  in.b_hh = checked("b_hh", b_hh, dtype, {GH});
  check_value(!gates || gates->is_contiguous(), "gates must be contiguous");
  cpu::Made<Tensor> made{empty({T, B, in.P}, dtype), empty({B, in.P}, dtype)};
  made.gates = checked("gates", gates, wide(dtype), {T, B, GH});
  if (in.cell.states == 2) made.c_last = empty({B, H}, dtype);
  made = run_forward(in, input, made, fixed, all_c, jobs);
  const Optional saved = fixed ? made.fixed : made.gates;
  return {made.y,
          made.h_last,
          made.c_last,
          made.c,
          training ? made.extra : std::nullopt,
          training && !in.cell.saves_output ? saved : std::nullopt};
}

// A layer of one direction, x: [T, B, I]: as `forward`, but the last states are [1, B, …] like the
// first ones, which are zeros if not given.
ForwardResult layer(const std::string& name, const Tensor& x, const Optional& h0,
                    const Optional& c0, const Tensor& w_ih, const Tensor& w_hh,
                    const Optional& b_ih, const Optional& b_hh, const Optional& w_hr, bool training,
                    bool reverse) {
  const CellInfo& cell = find_cell(name);
  const ScalarType dtype = w_hh.scalar_type();
  check_value(x.dim() == 3 && w_hh.dim() == 2, "x must be 3-D and w_hh 2-D");
  const int64_t T = x.size(0), B = x.size(1), H = w_hh.size(0) / cell.gates;
  const int64_t P = w_hr ? w_hr->size(0) : H;
  const bool two = cell.states == 2;
  Optional c;
  if (two) c = first_state("c0", c0, dtype, B, H);
  Given in = given(name, x, w_hh, w_hr, first_state("h0", h0, dtype, B, P), c, std::nullopt,
                   std::nullopt, reverse, training);
  in.b_hh = checked("b_hh", b_hh, dtype, {cell.gates * H});
  const Tensor h_last = empty({1, B, P}, dtype);
  Optional c_last;
  cpu::Made<Tensor> made{empty({T, B, P}, dtype), h_last.at(0)};
  if (two) c_last = empty({1, B, H}, dtype), made.c_last = c_last->at(0);
  const bool fixed = training && !cell.saves_output && dtype != wide(dtype);
  made = run_forward(in, input_of(x, w_ih, b_ih, dtype, cell.gates * H), made, fixed, training,
                     std::nullopt);
  return {made.y,
          h_last,
          c_last,
          made.c,
          training ? made.extra : std::nullopt,
          training && !cell.saves_output ? (fixed ? made.fixed : made.gates) : std::nullopt};
}

}  // namespace

bool with_input(const CellInfo& cell, int64_t B, int64_t H, int64_t P, int64_t I,
                ScalarType dtype) {
  const Widths widths = widths_of(dtype);
  const HostPlan chosen = plan(cell, B, H, P, widths);
  return makes_input(chosen.rows, chosen.units, B, I, cell.gates * H, widths.packed);
}

Tensor first_state(const char* name, const Optional& given, ScalarType dtype, int64_t B,
                   int64_t width) {
  if (given) return checked(name, *given, dtype, {1, B, width}).at(0);
  const Tensor zeros = empty({B, width}, dtype);
  if (zeros.numel() > 0)
    std::memset(zeros.mutable_data_ptr(), 0, zeros.numel() * zeros.element_size());
  return zeros;
}

BackwardResult backward(const std::string& name, const Tensor& gates, const Optional& extra,
                        const Tensor& y, const Optional& c, const Tensor& w_hh,
                        const Optional& w_hr, const Tensor& h0, const Optional& c0,
                        const Optional& lengths, const Optional& resets, bool reverse,
                        const Optional& dy, const Optional& dc, const Tensor& dh_last,
                        const Optional& dc_last, double grad_clip_time,
                        const std::optional<Ref>& jobs, bool of_states,
                        const std::optional<OfInput>& of_input) {
  const Given in = given(name, gates, w_hh, w_hr, h0, c0, lengths, resets, reverse, true);
  const ScalarType dtype = w_hh.scalar_type();
  const int64_t T = in.T, B = in.B, H = in.H, P = in.P, GH = in.cell.gates * H;
  const bool fixed = gates.scalar_type() == ScalarType::Short && keeps_fixed(in.cell, dtype);
  const ScalarType summed = wide(dtype);
  const ScalarType stored = cpu::of_gates(dtype, wide(dtype));
  const ScalarType unfixed = in.cell.saves_output ? dtype : summed;  // the output stands for them
  const Tensor saved = checked("gates", gates, fixed ? ScalarType::Short : unfixed, {T, B, GH});
  cpu::Back<Tensor> back;
  (fixed ? back.fixed : back.gates) = saved;
  back.y = checked("y", y, dtype, {T, B, P}), back.c = checked("c", c, dtype, {T, B, H});
  back.extra = checked("extra", extra, dtype, {T, B, H});
  if (dy && !dy->is_zero()) back.dy = checked("dy", *dy, dtype, {T, B, P});
  if (dc && !dc->is_zero()) back.dc = checked("dc", *dc, dtype, {T, B, H});
  check_value(in.cell.has_extra() == back.extra.has_value(), "extra does not fit the cell");
  back.dgx = empty({T, B, GH}, stored);
  back.dh_last = checked("dh_last", dh_last, dtype, {B, P});
  back.dh0 = empty({B, P}, summed);
  if (in.cell.own_gate >= 0) back.dgh_own = empty({T, B, H}, stored);
  if (in.cell.projected()) back.dh_total = empty({T, B, P}, stored);
  if (in.cell.states == 2) {
    check_value(back.c && dc_last, "cells with two states need c and dc_last");
    back.dc_last = checked("dc_last", *dc_last, dtype, {B, H});
    back.dc0 = empty({B, H}, summed);
  }
  back.grad_clip_time = grad_clip_time, back.of_states = of_states;
  if (of_input) back.w_ih = of_input->w_ih, back.dx = of_input->dx;
  if (B > 0) {
    run_or_leave(jobs, [=](int threads) {
      cpu::with_gradients(dtype, [&](auto x, auto d) {
        cpu::backward<typename decltype(x)::Type, typename decltype(d)::Type>(in, back, threads);
      });
    });
  }
  return {back.dgx, back.dgh_own, back.dh_total, back.dh0, back.dc0};
}

namespace {

BackwardResult backward_alone(const std::string& name, const Tensor& gates, const Optional& extra,
                              const Tensor& y, const Optional& c, const Tensor& w_hh,
                              const Optional& w_hr, const Tensor& h0, const Optional& c0,
                              const Optional& lengths, const Optional& resets, bool reverse,
                              const Optional& dy, const Optional& dc, const Tensor& dh_last,
                              const Optional& dc_last, double grad_clip_time,
                              const std::optional<Ref>& jobs, bool of_states) {
  return backward(name, gates, extra, y, c, w_hh, w_hr, h0, c0, lengths, resets, reverse, dy, dc,
                  dh_last, dc_last, grad_clip_time, jobs, of_states, std::nullopt);
}

std::string describe(const std::string& name, int64_t B, int64_t H, int64_t P, ScalarType dtype) {
  return plan(find_cell(name), B, H, P, widths_of(dtype)).describe() + ", " + cpu::kernels().isa;
}

Ref make_jobs() { return Type<Jobs>::make(std::make_unique<Jobs>()); }

std::string isa() { return cpu::kernels().isa; }
bool has_dots() { return cpu::kernels().dots != nullptr; }
bool has_tiles() { return cpu::kernels().tiles; }
std::string why_no_tiles() {
  const char* why = cpu::kernels().why_no_tiles;
  return why ? why : "";
}

}  // namespace

void bind_cpu(std::vector<PyMethodDef>& functions) {
  cpu::watch_forks();
  bind<&isa>(functions, "cpu_isa", "");
  bind<&has_dots>(functions, "cpu_has_dots", "");
  bind<&has_tiles>(functions, "cpu_has_tiles", "");
  bind<&why_no_tiles>(functions, "cpu_why_no_tiles", "");
  bind<&host_threads>(functions, "cpu_threads", "");
  bind<&describe>(functions, "cpu_plan", "cell, B, H, P, dtype");
  bind<&forward>(functions, "cpu_forward",
                 "*, cell, gates, x, w_ih, b_ih, fixed, w_hh, b_hh, w_hr, h0, c0, lengths, resets, "
                 "reverse, training, all_c, jobs");
  bind<&layer>(functions, "cpu_layer",
               "cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, training, reverse");
  bind<&backward_alone>(
      functions, "cpu_backward",
      "*, cell, gates, extra, y, c, w_hh, w_hr, h0, c0, lengths, resets, reverse, dy, "
      "dc, dh_last, dc_last, grad_clip_time, jobs, of_states");
  auto& jobs = *new Type<Jobs>;  // for as long as the process lives
  jobs.method<&Jobs::run>("run", "").property<&Jobs::count>("count");
  Type<Jobs>::add("rnnfast._cpu.Jobs", jobs);
  bind<&make_jobs>(functions, "cpu_jobs", "");
}

}  // namespace rnnfast::python
