// The host kernels for Python, on CPU tensors that rnnfast/backends/cpu.py has prepared.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/scratch.h"
#include "bindings/threads.h"
#include "cpu/crowd.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"
#include "scan/plan.h"

namespace rnnfast {
namespace {

namespace py = pybind11;
using at::Tensor;
using Optional = std::optional<Tensor>;

Tensor checked(const char* name, const Tensor& tensor, at::ScalarType dtype,
               at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " must be on the CPU, got ", tensor.device());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  return tensor.contiguous();
}

Optional checked(const char* name, const Optional& tensor, at::ScalarType dtype,
                 at::IntArrayRef shape) {
  if (!tensor) return std::nullopt;
  return checked(name, *tensor, dtype, shape);
}

template <class S>
S* data(const Optional& tensor) {
  return tensor ? tensor->mutable_data_ptr<S>() : nullptr;
}

Host host() { return cpu::host_with(host_threads()); }

HostPlan plan(const CellInfo& cell, int64_t B, int64_t H, int64_t P, int scalar_bytes) {
  return plan_host(cell, B, H, P, scalar_bytes, host());
}

// Scans that run at once, each on one thread: threads share the scans, not a scan's sequences. The
// results are the same bits.
class Jobs {
 public:
  // `start` is given a workspace of `bytes`, and keeps what it reads and writes alive.
  void add(int64_t bytes, std::function<void(void*)> start) {
    bytes_ = std::max(bytes_, bytes);
    starts_.push_back(std::move(start));
  }
  int64_t size() const { return static_cast<int64_t>(starts_.size()); }
  void run() {
    const int64_t count = size(), each = (bytes_ + 63) / 64 * 64;
    if (count == 0) return;
    const int n = static_cast<int>(std::min<int64_t>(count, host_threads()));
    const Tensor room = scratch(n * each);
    char* const workspace = static_cast<char*>(room.mutable_data_ptr());
    {
      py::gil_scoped_release no_gil;
      cpu::on_threads(n, [&](int id, int threads) {
        for (int64_t k = id; k < count; k += threads) starts_[k](workspace + id * each);
      });
    }
    starts_.clear();
  }

 private:
  int64_t bytes_ = 0;
  std::vector<std::function<void(void*)>> starts_;
};

// Sizes and the tensors that forward and backward have in common.
struct Common {
  const CellInfo& cell;
  at::ScalarType dtype;
  int64_t T, B, H, P;
  Tensor w_hh, h0;
  Optional b_hh, w_hr, c0, lengths, resets;

  // steps: [T, B, …]
  Common(const std::string& name, const Tensor& steps, const Tensor& w_hh_, const Optional& w_hr_,
         const Tensor& h0_, const Optional& c0_, const Optional& lengths_, const Optional& resets_)
      : cell(find_cell(name)), dtype(w_hh_.scalar_type()) {
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                     "expected float32 or float64, got ", dtype);
    TORCH_CHECK_VALUE(steps.dim() == 3 && w_hh_.dim() == 2, "gates and x must be 3-D and w_hh 2-D");
    T = steps.size(0), B = steps.size(1), H = w_hh_.size(0) / cell.gates, P = w_hh_.size(1);
    const int64_t GH = cell.gates * H;
    TORCH_CHECK_VALUE(T > 0 && H > 0 && P > 0, "sizes must be positive");
    TORCH_CHECK_VALUE(cell.projected() || P == H, "w_hh must be square for each gate");
    TORCH_CHECK_VALUE(cell.projected() == w_hr_.has_value(), "w_hr is for projected cells");
    TORCH_CHECK_VALUE((cell.states == 2) == c0_.has_value(), "c0 is for cells with two states");
    w_hh = checked("w_hh", w_hh_, dtype, {GH, P});
    w_hr = checked("w_hr", w_hr_, dtype, {P, H});
    h0 = checked("h0", h0_, dtype, {B, P});
    c0 = checked("c0", c0_, dtype, {B, H});
    lengths = checked("lengths", lengths_, at::kLong, {B});
    resets = checked("resets", resets_, at::kBool, {T, B});
  }

  Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, w_hh.options()); }
  // Whether the kernels can keep this cell's gates as 16-bit fixed point.
  bool keeps_fixed() const { return dtype == at::kFloat && cell.bounded_gates; }

  // Fills the common part of a kernel's arguments, but for its workspace, whose bytes it returns. I:
  // of x, where the scan makes the input's part of the gates. `alone`: on one thread.
  template <class S, class Arguments>
  int64_t fill(Arguments& a, bool reverse, bool alone, int64_t I = 0) const {
    a.T = T, a.B = B, a.H = H, a.P = P;
    a.reverse = reverse;
    const HostPlan chosen = plan(cell, B, H, P, sizeof(S));
    a.split = {chosen.rows, I > 0 || crowd().known() ? 1 : chosen.units};
    if (alone) a.split = {};
    a.w_hh = w_hh.const_data_ptr<S>();
    a.b_hh = data<S>(b_hh);
    a.w_hr = data<S>(w_hr);
    a.lengths = data<int64_t>(lengths);
    a.resets = data<bool>(resets);
    a.h0 = h0.const_data_ptr<S>();
    a.c0 = data<S>(c0);
    int64_t bytes = cpu::kernels().workspace(cell.id, B, H, P, sizeof(S), a.split);
    if (I > 0) bytes += cpu::kernels().input_room(cell.id, B, I, H, sizeof(S), a.split);
    return bytes;
  }
};

// f(0.0f) or f(0.0), by dtype.
template <class F>
void with_scalar(at::ScalarType dtype, const F& f) {
  dtype == at::kFloat ? f(0.0f) : f(0.0);
}

bool call(CellId id, const cpu::Forward<float>& f) { return cpu::kernels().forward_f32(id, f); }
bool call(CellId id, const cpu::Forward<double>& f) { return cpu::kernels().forward_f64(id, f); }
bool call(CellId id, const cpu::Backward<float>& g) { return cpu::kernels().backward_f32(id, g); }
bool call(CellId id, const cpu::Backward<double>& g) { return cpu::kernels().backward_f64(id, g); }

// Runs `pass`, or leaves that to `jobs`, for which `kept` is kept alive.
template <class Pass, class Kept>
void start(CellId id, Pass& pass, int64_t bytes, Jobs* jobs, Kept kept) {
  if (jobs) {
    jobs->add(bytes, [id, pass, kept](void* workspace) mutable {
      pass.workspace = workspace;
      call(id, pass);
    });
    return;
  }
  const Tensor workspace = scratch(bytes);
  pass.workspace = workspace.mutable_data_ptr();
  py::gil_scoped_release no_gil;
  if (call(id, pass)) crowd().seen();
}

// x [T, B, I] of any strides but the last, and what it is multiplied with.
struct Input {
  Tensor x, w_ih;
  Optional b_ih;

  Input(const Common& in, const Tensor& x_, const Optional& w_ih_, const Optional& b_ih_) {
    TORCH_CHECK_VALUE(w_ih_ && w_ih_->dim() == 2 && w_ih_->size(1) > 0, "x needs w_ih");
    const int64_t GH = in.cell.gates * in.H, I = w_ih_->size(1);
    checked("x", x_.slice(0, 0, 0), in.dtype, {0, in.B, I});
    x = x_.resolve_neg();
    if (x.stride(2) != 1) x = x.contiguous();
    w_ih = checked("w_ih", w_ih_->resolve_neg(), in.dtype, {GH, I});
    b_ih = checked("b_ih", b_ih_, in.dtype, {GH});
    if (b_ih) b_ih = b_ih->resolve_neg();
  }

  int64_t I() const { return w_ih.size(1); }

  template <class S>
  void fill(cpu::Forward<S>& f) const {
    f.x = x.const_data_ptr<S>(), f.w_ih = w_ih.const_data_ptr<S>(), f.b_ih = data<S>(b_ih);
    f.I = I(), f.x_step = x.stride(0), f.x_row = x.stride(1);
  }
};

// Whether a scan should make the input's part of the gates itself: each thread has sequences of its
// own, enough of them for the product, and its packed weights do not fill the cache. The plan counts
// the recurrent product only: where it leaves threads idle, a large product of the input needs them.
bool makes_input(const std::string& name, int64_t B, int64_t I, int64_t H, int64_t P,
                 int scalar_bytes) {
  constexpr int64_t kMostBytes = int64_t(4) << 20, kLeastRows = 16, kMostWork = 100000;
  const CellInfo& cell = find_cell(name);
  const HostPlan chosen = plan(cell, B, H, P, scalar_bytes);
  const int64_t weights = cell.gates * H * I;
  const bool idle = chosen.rows < host().threads;
  return chosen.units == 1 && B / chosen.rows >= kLeastRows && I > 0 &&
         weights * scalar_bytes <= kMostBytes && !(idle && weights * B > kMostWork);
}

using ForwardResult = std::tuple<Tensor, Tensor, Optional, Optional, Optional>;

// `gates`: x·W_ihᵀ + b_ih, overwritten, if training with what backward needs of them, or that is put
// into `fixed` (int16, for gates in float32). Or x and the weights it is multiplied with: then
// `gates` is written only, and may be left out where backward needs nothing of it.
// (y, last h, last c, every c, extra); every c if `all_c`, extra if training. With `jobs` they are
// only written when those run.
ForwardResult forward(const std::string& name, const Optional& gates, const Optional& x,
                      const Optional& w_ih, const Optional& b_ih, const Optional& fixed,
                      const Tensor& w_hh, const Optional& b_hh, const Optional& w_hr,
                      const Tensor& h0, const Optional& c0, const Optional& lengths,
                      const Optional& resets, bool reverse, bool training, bool all_c, Jobs* jobs) {
  TORCH_CHECK_VALUE(gates || x, "gates or x must be given");
  Common in(name, x ? *x : *gates, w_hh, w_hr, h0, c0, lengths, resets);
  std::optional<Input> input;
  if (x) input.emplace(in, *x, w_ih, b_ih);
  const int64_t T = in.T, B = in.B, H = in.H, P = in.P;
  in.b_hh = checked("b_hh", b_hh, in.dtype, {in.cell.gates * H});
  const std::array<int64_t, 3> shape{T, B, in.cell.gates * H};
  TORCH_CHECK_VALUE(!gates || gates->is_contiguous(), "gates must be contiguous");
  const Optional gates_out = checked("gates", gates, in.dtype, shape);
  TORCH_CHECK_VALUE(gates || fixed || !training || in.cell.saves_output,
                    "gates or fixed is needed for what backward reads");
  TORCH_CHECK_VALUE(!fixed || fixed->is_contiguous(), "fixed must be contiguous");
  TORCH_CHECK_VALUE(!fixed || in.keeps_fixed(), "fixed is for float32 and cells with gates");
  const Optional fixed_out = checked("fixed", fixed, at::kShort, shape);
  Tensor y = in.empty({T, B, P}), h_last = in.empty({B, P});
  Optional c_last, c, extra;
  if (in.cell.states == 2) c_last = in.empty({B, H});
  if (in.cell.states == 2 && all_c) c = in.empty({T, B, H});
  if (in.cell.has_extra()) extra = training ? in.empty({T, B, H}) : in.empty({B, H});
  if (B == 0) return {y, h_last, c_last, c, extra};
  with_scalar(in.dtype, [&](auto zero) {
    using S = decltype(zero);
    cpu::Forward<S> f;
    const int64_t bytes = in.fill<S>(f, reverse, jobs != nullptr, input ? input->I() : 0);
    f.training = training;
    if (input) input->fill(f);
    f.gates = data<S>(gates_out);
    f.fixed = data<int16_t>(fixed_out);
    f.extra = data<S>(extra);
    f.y = y.mutable_data_ptr<S>();
    f.c = data<S>(c);
    f.h_last = h_last.mutable_data_ptr<S>();
    f.c_last = data<S>(c_last);
    start(in.cell.id, f, bytes, jobs,
          std::make_tuple(in, input, gates_out, fixed_out, extra, y, c, h_last, c_last));
  });
  return {y, h_last, c_last, c, training ? extra : std::nullopt};
}

using BackwardResult = std::tuple<Tensor, Optional, Optional, Tensor, Optional>;

// (dgx, the part of dgh that is another than dgx's, gradient of each h' of projected cells,
// dh0, dc0). `gates` as forward left them, or what it put into `fixed`. `dh_last` and `dc_last` are
// not written to.
BackwardResult backward(const std::string& name, const Tensor& gates, const Optional& extra,
                        const Tensor& y, const Optional& c, const Tensor& w_hh,
                        const Optional& w_hr, const Tensor& h0, const Optional& c0,
                        const Optional& lengths, const Optional& resets, bool reverse,
                        const Optional& dy, const Optional& dc, const Tensor& dh_last,
                        const Optional& dc_last, double grad_clip_time, Jobs* jobs) {
  const Common in(name, gates, w_hh, w_hr, h0, c0, lengths, resets);
  const int64_t T = in.T, B = in.B, H = in.H, P = in.P, GH = in.cell.gates * H;
  const bool fixed = gates.scalar_type() == at::kShort && in.keeps_fixed();
  const Tensor saved = checked("gates", gates, fixed ? at::kShort : in.dtype, {T, B, GH});
  const Tensor outputs = checked("y", y, in.dtype, {T, B, P});
  const Optional every_c = checked("c", c, in.dtype, {T, B, H});
  const Optional more = checked("extra", extra, in.dtype, {T, B, H});
  const Optional dy_in = checked("dy", dy, in.dtype, {T, B, P});
  const Optional dc_in = checked("dc", dc, in.dtype, {T, B, H});
  TORCH_CHECK_VALUE(in.cell.has_extra() == more.has_value(), "extra does not fit the cell");
  Tensor dgx = in.empty({T, B, GH}), dh0 = checked("dh_last", dh_last, in.dtype, {B, P}).clone();
  Optional dgh_own, dh_total, dc0;
  if (in.cell.own_gate >= 0) dgh_own = in.empty({T, B, H});
  if (in.cell.projected()) dh_total = in.empty({T, B, P});
  if (in.cell.states == 2) {
    TORCH_CHECK_VALUE(every_c && dc_last, "cells with two states need c and dc_last");
    dc0 = checked("dc_last", *dc_last, in.dtype, {B, H}).clone();
  }
  if (B == 0) return {dgx, dgh_own, dh_total, dh0, dc0};
  with_scalar(in.dtype, [&](auto zero) {
    using S = decltype(zero);
    cpu::Backward<S> g;
    const int64_t bytes = in.fill<S>(g, reverse, jobs != nullptr);
    g.training = true;
    g.clip = TimeClip<S>::of(grad_clip_time);
    g.gates = fixed ? nullptr : saved.const_data_ptr<S>();
    g.fixed = fixed ? saved.const_data_ptr<int16_t>() : nullptr;
    g.extra = data<S>(more);
    g.y = outputs.const_data_ptr<S>();
    g.c = data<S>(every_c);
    g.dy = data<S>(dy_in);
    g.dc = data<S>(dc_in);
    g.dgx = dgx.mutable_data_ptr<S>();
    g.dgh_own = data<S>(dgh_own);
    g.dh_total = data<S>(dh_total);
    g.dh0 = dh0.mutable_data_ptr<S>();
    g.dc0 = data<S>(dc0);
    start(in.cell.id, g, bytes, jobs,
          std::make_tuple(in, saved, more, outputs, every_c, dy_in, dc_in, dgx, dgh_own, dh_total,
                          dh0, dc0));
  });
  return {dgx, dgh_own, dh_total, dh0, dc0};
}

std::string describe(const std::string& name, int64_t B, int64_t H, int64_t P, int scalar_bytes) {
  return plan(find_cell(name), B, H, P, scalar_bytes).describe() + ", " + cpu::kernels().isa;
}

// For cells that are compiled at run time: (rows, units, in words).
std::tuple<int, int, std::string> split(double weights, int gates, int meetings, int64_t B,
                                        int64_t H, int scalar_bytes) {
  const HostPlan chosen = plan_host({weights, gates, meetings}, B, H, scalar_bytes, host());
  return {chosen.rows, chosen.units, chosen.describe() + ", " + cpu::kernels().isa};
}

// Their threads are ours, so that there is one OpenMP in the process. The number is asked for again:
// what a cell was planned for may have been before a fork.
void run_team(int n, void (*body)(void*, int, int), void* context) {
  cpu::on_threads(std::min(n, host_threads()),
                  [&](int id, int threads) { body(context, id, threads); });
}

}  // namespace
}  // namespace rnnfast

void bind_cpu(pybind11::module_& m) {
  namespace py = pybind11;
  rnnfast::cpu::watch_forks();
  m.def("cpu_isa", [] { return std::string(rnnfast::cpu::kernels().isa); });
  m.def("cpu_threads", &rnnfast::host_threads);
  m.def("cpu_plan", &rnnfast::describe);
  m.def("cpu_split", &rnnfast::split, py::arg("weights"), py::arg("gates"), py::arg("meetings"),
        py::arg("B"), py::arg("H"), py::arg("scalar_bytes"));
  m.def("cpu_team", [] { return reinterpret_cast<intptr_t>(&rnnfast::run_team); });
  m.def("cpu_makes_input", &rnnfast::makes_input, py::arg("cell"), py::arg("B"), py::arg("I"),
        py::arg("H"), py::arg("P"), py::arg("scalar_bytes"));
  py::class_<rnnfast::Jobs>(m, "CpuJobs")
      .def(py::init<>())
      .def("run", &rnnfast::Jobs::run)
      .def("__len__", &rnnfast::Jobs::size);
  m.def("cpu_forward", &rnnfast::forward, py::kw_only(), py::arg("cell"), py::arg("gates"),
        py::arg("x"), py::arg("w_ih"), py::arg("b_ih"), py::arg("fixed"), py::arg("w_hh"),
        py::arg("b_hh"), py::arg("w_hr"), py::arg("h0"), py::arg("c0"), py::arg("lengths"),
        py::arg("resets"), py::arg("reverse"), py::arg("training"), py::arg("all_c"),
        py::arg("jobs") = nullptr);
  m.def("cpu_backward", &rnnfast::backward, py::kw_only(), py::arg("cell"), py::arg("gates"),
        py::arg("extra"), py::arg("y"), py::arg("c"), py::arg("w_hh"), py::arg("w_hr"),
        py::arg("h0"), py::arg("c0"), py::arg("lengths"), py::arg("resets"), py::arg("reverse"),
        py::arg("dy"), py::arg("dc"), py::arg("dh_last"), py::arg("dc_last"),
        py::arg("grad_clip_time"), py::arg("jobs") = nullptr);
}
