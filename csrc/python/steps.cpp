// The loops of cells that are compiled at run time (csrc/cpu/steps), for Python: the memory of a
// call is found, or made, as rnnfast/steps/passes.py says of its pass.
#include "scan/steps.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/threads.h"
#include "python/bind.h"
#include "python/input.h"
#include "python/module.h"
#include "python/type.h"

namespace rnnfast::python {
namespace {

using Optional = std::optional<Tensor>;

// Their threads are ours, so that there is one OpenMP in the process. The number is asked for again:
// what a cell was planned for may have been before a fork.
void run_team(int n, void (*body)(void*, int, int), void* context) {
  cpu::on_threads(std::min(n, host_threads()),
                  [&](int id, int threads) { body(context, id, threads); });
}

// Of a tensor: [T, B, width], [B, width] or [2, B, width].
enum class Extent : int64_t { kSteps, kSequences, kSlots };

// extent, width; of what is given whether it may be missing, of what is made whether it begins as
// zeros, and whether it is returned.
using Given = std::tuple<int64_t, int64_t, bool>;
using Made = std::tuple<int64_t, int64_t, bool, bool>;
// As steps::Buffer; of memory the number among what is given and then made, or -1.
using Buffer = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool>;
using View = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;
using Step = std::tuple<double, int, int>;  // StepCost

class Pass {
 public:
  using Bytes = int64_t (*)(const steps::Arguments*);

  Pass(int64_t function, int64_t bytes, int64_t H, ScalarType dtype, std::vector<Shape> weights,
       const std::vector<View>& views, std::vector<double> constants, std::vector<Given> given,
       std::vector<Made> made, std::vector<Buffer> buffers)
      : function_(reinterpret_cast<steps::HostPass>(function)),
        bytes_(reinterpret_cast<Bytes>(bytes)),
        H_(H),
        dtype_(dtype),
        weights_(std::move(weights)),
        constants_(std::move(constants)),
        given_(std::move(given)),
        made_(std::move(made)),
        buffers_(std::move(buffers)) {
    check_number(dtype);
    for (const View& view : views)
      std::apply([&](auto... fields) { views_.push_back({fields...}); }, view);
    const int64_t count = static_cast<int64_t>(given_.size() + made_.size());
    for (const auto& [base, init, last, width, kind, clear] : buffers_) {
      for (const int64_t at : {base, init, last})
        check_value(at >= -1 && at < count, "a buffer's memory has no number ", at);
    }
  }

  // Where x is not None the first of `given` is x·W_ihᵀ + b_ih, and made here. Returns that, and then
  // of what is made what is to last, in order.
  std::vector<Tensor> run(const std::vector<Optional>& given, const std::vector<Tensor>& weights,
                          const Optional& x, const Optional& w_ih, const Optional& b_ih,
                          const Optional& lengths, const Optional& resets, int rows, int units,
                          bool reverse, bool training, double grad_clip_time) const {
    check_value(given.size() == given_.size() && weights.size() == weights_.size(), "expected ",
                given_.size(), " tensors and ", weights_.size(), " weights");
    const auto& like = x ? x : given[0];
    check_value(like && like->dim() == 3, "the first tensor must be 3-D");
    Call call{like->size(0), like->size(1), host_threads()};
    if (x) call.project(*x, w_ih, b_ih, dtype_, std::get<1>(given_[0]));
    for (size_t k = 0; k < given_.size(); ++k)
      if (!x || k > 0) call.find(given[k], given_[k], dtype_);
    for (const Made& one : made_) call.make(one, dtype_);
    for (size_t k = 0; k < weights_.size(); ++k)
      call.weights.push_back(checked("a weight", weights[k], dtype_, weights_[k]));
    if (lengths) call.lengths = checked("lengths", *lengths, ScalarType::Long, {call.B});
    if (resets) call.resets = checked("resets", *resets, ScalarType::Bool, {call.T, call.B});
    if (call.B > 0) loop(call, rows, units, reverse, training, grad_clip_time);
    return call.returned;
  }

 private:
  struct Call {
    int64_t T, B;
    int threads;
    std::vector<void*> at{};         // of what is given and made; null where it is not there yet
    std::vector<Tensor> kept{};      // what is given
    std::vector<Tensor> returned{};  // what is made and is to last
    std::vector<Tensor> weights{};
    Optional lengths{}, resets{};

    Shape shape(int64_t extent, int64_t width) const {
      if (Extent(extent) == Extent::kSteps) return {T, B, width};
      if (Extent(extent) == Extent::kSequences) return {B, width};
      return {2, B, width};
    }

    void project(const Tensor& x, const Optional& w_ih, const Optional& b_ih, ScalarType dtype,
                 int64_t columns) {
      const Input input = input_of(x, w_ih, b_ih, dtype, columns);
      const Tensor gates = empty({T, B, columns}, dtype);
      if (B > 0) {
        dtype == ScalarType::Float ? python::project<float>(input, gates, threads)
                                   : python::project<double>(input, gates, threads);
      }
      keep(returned, gates);
    }

    void find(const Optional& tensor, const Given& given, ScalarType dtype) {
      const auto [extent, width, optional] = given;
      if (optional && (!tensor || !tensor->has_memory())) return at.push_back(nullptr);
      check_value(tensor.has_value(), "a tensor must be given");
      keep(kept, checked("a tensor", *tensor, dtype, shape(extent, width)));
    }

    void make(const Made& made, ScalarType dtype) {
      const auto [extent, width, zeroed, lasting] = made;
      if (!lasting) return at.push_back(nullptr);
      const Tensor tensor = empty(shape(extent, width), dtype);
      if (zeroed) std::fill_n(tensor.mutable_data_ptr<char>(), bytes_of(tensor), 0);
      keep(returned, tensor);
    }

    static int64_t bytes_of(const Tensor& tensor) { return tensor.numel() * tensor.element_size(); }
    void keep(std::vector<Tensor>& among, const Tensor& tensor) {
      at.push_back(tensor.mutable_data_ptr());
      among.push_back(tensor);
    }
  };

  static constexpr int64_t kLine = 64;
  static int64_t lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

  // Of what is made for the call only.
  int64_t room(const Made& made, int64_t B) const {
    const auto [extent, width, zeroed, lasting] = made;
    const int64_t rows = Extent(extent) == Extent::kSlots ? 2 * B : B;
    return lasting ? 0 : lines(rows * width * scalar_bytes());
  }
  int scalar_bytes() const { return dtype_ == ScalarType::Float ? 4 : 8; }

  void loop(Call& call, int rows, int units, bool reverse, bool training,
            double grad_clip_time) const {
    steps::Arguments a{};
    a.T = call.T, a.B = call.B, a.H = H_;
    a.reverse = reverse, a.training = training;
    a.rows = rows, a.units = crowd().known() ? 1 : units;
    a.lengths = cpu::data<const int64_t>(call.lengths);
    a.resets = cpu::data<const bool>(call.resets);
    std::vector<steps::Buffer> buffers;
    for (const auto& [base, init, last, width, kind, clear] : buffers_)
      buffers.push_back({nullptr, nullptr, nullptr, width, kind, clear});
    std::vector<const void*> weights;
    for (const Tensor& weight : call.weights) weights.push_back(weight.const_data_ptr());
    a.buffers = buffers.data(), a.weights = weights.data();
    a.views = views_.data(), a.constants = constants_.data();
    a.grad_clip_time = grad_clip_time, a.team = &run_team;
    const int64_t own = lines(bytes_(&a));
    int64_t size = own;
    for (const Made& made : made_) size += room(made, call.B);
    char* const memory = static_cast<char*>(cpu::scratch(size));
    a.workspace = memory;
    char* next = memory + own;
    for (size_t k = 0; k < made_.size(); ++k) {
      if (std::get<3>(made_[k])) continue;
      call.at[given_.size() + k] = next;
      next += room(made_[k], call.B);
    }
    const auto address = [&](int64_t k) { return k < 0 ? nullptr : call.at[k]; };
    for (size_t k = 0; k < buffers.size(); ++k) {
      const auto& [base, init, last, width, kind, clear] = buffers_[k];
      buffers[k].base = address(base), buffers[k].init = address(init);
      buffers[k].last = address(last);
    }
    bool dissolved = false;
    {
      const WithoutGil no_gil;
      dissolved = function_(&a);
    }
    if (dissolved) crowd().seen();
  }

  const steps::HostPass function_;
  const Bytes bytes_;
  const int64_t H_;
  const ScalarType dtype_;
  const std::vector<Shape> weights_;
  std::vector<steps::View> views_;
  const std::vector<double> constants_;
  const std::vector<Given> given_;
  const std::vector<Made> made_;
  const std::vector<Buffer> buffers_;
};

// function, bytes: addresses, in a library that stays loaded.
Ref make_pass(int64_t function, int64_t bytes, int64_t H, ScalarType dtype,
              const std::vector<Shape>& weights, const std::vector<View>& views,
              const std::vector<double>& constants, const std::vector<Given>& given,
              const std::vector<Made>& made, const std::vector<Buffer>& buffers) {
  return Type<Pass>::make(std::make_unique<Pass>(function, bytes, H, dtype, weights, views,
                                                 constants, given, made, buffers));
}

// (rows, units, in words).
std::tuple<int, int, std::string> split(const Step& step, int64_t B, int64_t H, int scalar_bytes) {
  const auto [weights, gates, meetings] = step;
  const HostPlan chosen =
      plan_host({weights, gates, meetings}, B, H, scalar_bytes, cpu::host_with(host_threads()));
  return {chosen.rows, chosen.units, chosen.describe() + ", " + cpu::kernels().isa};
}

int64_t team() { return reinterpret_cast<intptr_t>(&run_team); }

}  // namespace

void bind_steps(std::vector<PyMethodDef>& functions) {
  bind<&split>(functions, "cpu_split", "step, B, H, scalar_bytes");
  bind<&team>(functions, "cpu_team", "");
  auto& pass = *new Type<Pass>;  // for as long as the process lives
  pass.method<&Pass::run>(
      "run",
      "given, weights, x, w_ih, b_ih, lengths, resets, *, rows, units, reverse, "
      "training, grad_clip_time");
  Type<Pass>::add("rnnfast._cpu.Pass", pass);
  bind<&make_pass>(functions, "cpu_pass",
                   "*, function, bytes, H, dtype, weights, views, constants, given, made, "
                   "buffers");
}

}  // namespace rnnfast::python
