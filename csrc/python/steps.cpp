// The loops of cells that are compiled at run time (csrc/cpu/steps), for Python: the memory of a
// call is found, or made, as rnnfast/steps/passes.py says of its pass.
#include "scan/steps.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

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

// Their threads are ours, so that there is one OpenMP in the process. The number is asked for again:
// what a cell was planned for may have been before a fork.
void run_team(int n, void (*body)(void*, int, int), void* context) {
  cpu::run_threads(std::min(n, host_threads()), body, context);
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
// dx, those of the initial states, those of the weights
using Gradients = std::tuple<Optional, std::vector<Tensor>, std::vector<Tensor>>;

class Pass {
 public:
  using Bytes = int64_t (*)(const steps::Arguments*);

  // products: multiply-adds of a step of one sequence. in_place: whether one step of few sequences
  // may read the weights where they lie.
  Pass(int64_t function, int64_t bytes, int64_t H, ScalarType dtype, int64_t products,
       bool in_place, std::vector<Shape> weights, const std::vector<View>& views,
       std::vector<double> constants, std::vector<Given> given, std::vector<Made> made,
       std::vector<Buffer> buffers)
      : function_(reinterpret_cast<steps::HostPass>(function)),
        bytes_(reinterpret_cast<Bytes>(bytes)),
        H_(H),
        dtype_(dtype),
        products_(products),
        in_place_(in_place),
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

  // Where x is not None the first of `given` is x·W_ihᵀ + b_ih, and made here. Returns that, if
  // training, and then of what is made what is to last, in order.
  std::vector<Tensor> run(const std::vector<Optional>& given, const std::vector<Tensor>& weights,
                          const Optional& x, const Optional& w_ih, const Optional& b_ih,
                          const Optional& lengths, const Optional& resets, int rows, int units,
                          bool reverse, bool training, double grad_clip_time) const {
    check_value(given.size() == given_.size(), "expected ", given_.size(), " tensors");
    const auto& like = x ? x : given[0];
    check_value(like && like->dim() == 3, "the first tensor must be 3-D");
    Call call{like->size(0), like->size(1), rows, units, reverse, training, grad_clip_time};
    if (x) call.input = input_of(*x, w_ih, b_ih, dtype_, columns());
    return run_of(call, given, weights, lengths, resets);
  }

  // What `gradients` makes of a pass backward: the sums of all weights' gradients, and by number what
  // they are given, the weights that the loop reads, w_ih, and where dgx and the gradients of the
  // initial states are. Of tensors the numbers count what is given and then returned; -1 is x.
  void leaves(const Ref& sums, const std::vector<int64_t>& tensors,
              const std::vector<int64_t>& weights, int64_t w_ih, int64_t dgx,
              const std::vector<int64_t>& dstates) {
    left_ = Left{sums, tensors, weights, w_ih, dgx, dstates};
  }

  // The gradients of a scan of x that are wanted; `weights`: all of them.
  Gradients gradients(const std::vector<Optional>& given, const Tensor& x,
                      const std::vector<Tensor>& weights, const Optional& lengths,
                      const Optional& resets, bool of_input, bool of_weights, int rows, int units,
                      bool reverse, double grad_clip_time) const {
    check_value(left_.has_value(), "nothing was said of what the pass leaves");
    std::vector<Tensor> of_loop;
    for (const int64_t k : left_->weights) of_loop.push_back(weights.at(k));
    check_value(x.dim() == 3, "x must be 3-D");
    Call call{x.size(0), x.size(1), rows, units, reverse, true, grad_clip_time};
    if (of_input) call.of_input = in_loop(call, x.size(2), weights.at(left_->w_ih));
    const std::vector<Tensor> made = run_of(call, given, of_loop, lengths, resets);
    const int64_t count = static_cast<int64_t>(given.size());
    const auto tensor = [&](int64_t k) {
      return k < 0 ? x : k < count ? given.at(k).value() : made.at(k - count);
    };
    Gradients found;
    auto& [dx, dstates, dweights] = found;
    for (const int64_t k : left_->dstates) dstates.push_back(tensor(k));
    if (of_weights) {
      std::vector<Tensor> tensors;
      for (const int64_t k : left_->tensors) tensors.push_back(tensor(k));
      dweights = added_up(left_->sums, tensors, weights, lengths, resets, reverse);
    }
    if (call.of_input) {
      dx = call.of_input->dx;
    } else if (of_input) {
      dx = input_gradient(tensor(left_->dgx), weights.at(left_->w_ih));
    }
    return found;
  }

  // A layer of one direction, x: [T, B, I], as `run`, but the last states are [1, B, H] like the
  // first ones, of which there may be none: they are zeros.
  std::vector<Tensor> layer(const Tensor& x, const std::vector<Tensor>& states,
                            const std::vector<Tensor>& weights, const Optional& w_ih,
                            const Optional& b_ih, int rows, int units, bool training,
                            bool reverse) const {
    check_value(x.dim() == 3, "x must be 3-D");
    check_value(states.empty() || states.size() + 1 == given_.size(), "expected ",
                given_.size() - 1, " states");
    Call call{x.size(0), x.size(1), rows, units, reverse, training, 0};
    call.rows_of_states = true;
    call.input = input_of(x, w_ih, b_ih, dtype_, columns());
    begin(call);
    if (states.empty()) {
      const Tensor zeros = first_state("a state", std::nullopt, dtype_, call.B, H_);
      for (size_t k = 1; k < given_.size(); ++k) call.find(zeros, given_[k], dtype_);
    }
    for (const Tensor& state : states)
      call.keep(call.kept, checked("a state", state, dtype_, {1, call.B, H_}));
    return finished(call, weights);
  }

  // `gradients` of a layer that `layer` made, of states and their gradients [1, B, H], zeros where
  // they are None. Those of the initial ones are [B, H].
  Gradients layer_gradients(std::vector<Optional> given, const Tensor& x,
                            const std::vector<Tensor>& weights, bool of_input, bool of_weights,
                            int rows, int units, bool reverse) const {
    check_value(x.dim() == 3 && given.size() == given_.size(), "expected x, 3-D, and ",
                given_.size(), " tensors");
    Optional zeros;
    for (size_t k = 0; k < given.size(); ++k) {
      if (Extent(std::get<0>(given_[k])) != Extent::kSequences) continue;
      if (given[k] || !zeros) {
        const Tensor state = first_state("a state", given[k], dtype_, x.size(1), H_);
        if (!given[k]) zeros = state;
        given[k] = state;
      } else {
        given[k] = zeros;
      }
    }
    return gradients(given, x, weights, std::nullopt, std::nullopt, of_input, of_weights, rows,
                     units, reverse, 0);
  }

 private:
  struct Call {
    int64_t T, B;
    int rows, units;
    bool reverse, training;
    double grad_clip_time;
    bool rows_of_states = false;        // [1, B, width]
    bool in_place = false;              // one step, with weights as they lie
    std::optional<Input> input{};       // where the loop makes the gates
    std::optional<OfInput> of_input{};  // where it makes the gradient of x
    std::vector<void*> at{};            // of what is given and made; null where it is not there yet
    std::vector<Tensor> kept{};         // what is given
    std::vector<Tensor> returned{};     // what is made and is to last
    std::vector<Tensor> weights{};
    Optional lengths{}, resets{};

    Shape shape(int64_t extent, int64_t width) const {
      if (Extent(extent) == Extent::kSteps) return {T, B, width};
      if (Extent(extent) == Extent::kSequences) return {B, width};
      return {2, B, width};
    }

    void find(const Optional& tensor, const Given& given, ScalarType dtype) {
      const auto [extent, width, optional] = given;
      if (optional && (!tensor || tensor->is_zero())) return at.push_back(nullptr);
      check_value(tensor.has_value(), "a tensor must be given");
      keep(kept, checked("a tensor", *tensor, dtype, shape(extent, width)));
    }

    void make(const Made& made, ScalarType dtype) {
      const auto [extent, width, zeroed, lasting] = made;
      if (!lasting) return at.push_back(nullptr);
      Shape sizes = shape(extent, width);
      if (rows_of_states && Extent(extent) == Extent::kSequences) sizes.insert(sizes.begin(), 1);
      const Tensor tensor = empty(sizes, dtype);
      if (zeroed) std::fill_n(tensor.mutable_data_ptr<char>(), bytes_of(tensor), 0);
      keep(returned, tensor);
    }

    static int64_t bytes_of(const Tensor& tensor) { return tensor.numel() * tensor.element_size(); }
    void keep(std::vector<Tensor>& among, const Tensor& tensor) {
      at.push_back(tensor.mutable_data_ptr());
      among.push_back(tensor);
    }
  };

  int64_t columns() const { return std::get<1>(given_[0]); }

  std::vector<Tensor> run_of(Call& call, const std::vector<Optional>& given,
                             const std::vector<Tensor>& weights, const Optional& lengths,
                             const Optional& resets) const {
    check_value(given.size() == given_.size(), "expected ", given_.size(), " tensors");
    if (lengths) call.lengths = checked("lengths", *lengths, ScalarType::Long, {call.B});
    if (resets) call.resets = checked("resets", *resets, ScalarType::Bool, {call.T, call.B});
    begin(call);
    for (size_t k = call.at.size(); k < given_.size(); ++k) call.find(given[k], given_[k], dtype_);
    return finished(call, weights);
  }

  // What the loop needs to make the gradient of x [T, B, I], if it should. dgx is among what is made.
  std::optional<OfInput> in_loop(const Call& call, int64_t I, const Tensor& w_ih) const {
    check_value(left_->dgx >= int64_t(given_.size()), "dgx is what the loop makes");
    const int64_t B = call.B, rows = w_ih.size(0);
    if (B == 0 || !makes_input(call.rows, call.units, B, I, rows, scalar_bytes()))
      return std::nullopt;
    return OfInput{checked("w_ih", w_ih, dtype_, {rows, I}), empty({call.T, B, I}, dtype_)};
  }

  // How the call is run; the input's part of the gates, unless the loop makes it a few steps at a
  // time, which nobody keeps but training.
  void begin(Call& call) const {
    const int threads = host_threads();
    const int64_t B = call.B, I = call.input ? call.input->I : 0;
    call.in_place = in_place_ && cpu::is_in_place(call.T, B);
    if (call.in_place) {
      call.rows = 1;
      call.units = cpu::in_place_threads(products_ + columns() * I, threads);
    }
    if (!call.input) return;
    const bool steps = call.in_place || B == 0 ||
                       makes_input(call.rows, call.units, B, I, columns(), scalar_bytes());
    if (steps && !call.training) return call.at.push_back(nullptr);
    const Tensor gates = empty({call.T, B, columns()}, dtype_);
    call.keep(call.training ? call.returned : call.kept, gates);
    if (steps) return;
    dtype_ == ScalarType::Float ? project<float>(*call.input, gates, threads)
                                : project<double>(*call.input, gates, threads);
    call.input.reset();
  }

  std::vector<Tensor> finished(Call& call, const std::vector<Tensor>& weights) const {
    check_value(weights.size() == weights_.size(), "expected ", weights_.size(), " weights");
    for (const Made& one : made_) call.make(one, dtype_);
    for (size_t k = 0; k < weights_.size(); ++k)
      call.weights.push_back(checked("a weight", weights[k], dtype_, weights_[k]));
    if (call.B > 0) dtype_ == ScalarType::Float ? loop<float>(call) : loop<double>(call);
    return call.returned;
  }

  // What the loop's calls of Input read.
  template <class S>
  static cpu::Forward<S> forward_of(const Call& call, const steps::Arguments& a) {
    cpu::Forward<S> f;
    f.T = call.T, f.B = call.B, f.reverse = call.reverse;
    f.split = {static_cast<int>(a.rows), static_cast<int>(a.units)};
    f.in_place = call.in_place;
    f.gates = static_cast<S*>(call.at[0]);
    f.x = cpu::data<const S>(call.input->x), f.w_ih = cpu::data<const S>(call.input->w_ih);
    f.b_ih = cpu::data<const S>(call.input->b_ih);
    f.I = call.input->I, f.x_step = call.input->x_step, f.x_row = call.input->x_row;
    return f;
  }
  static steps::Input called(const cpu::Forward<float>& f, int64_t columns) {
    return cpu::kernels().loop_input_f32(f, columns);
  }
  static steps::Input called(const cpu::Forward<double>& f, int64_t columns) {
    return cpu::kernels().loop_input_f64(f, columns);
  }

  template <class S>
  cpu::Backward<S> backward_of(const Call& call) const {
    const Tensor& dgx = call.returned.at(left_->dgx - given_.size());
    check_value(dgx.size(2) == call.of_input->w_ih.size(0), "w_ih must have as many rows as gates");
    cpu::Backward<S> g;
    g.T = call.T, g.B = call.B, g.reverse = call.reverse;
    g.dgx = cpu::data<S>(dgx), g.dx = cpu::data<S>(call.of_input->dx);
    g.w_ih = cpu::data<const S>(call.of_input->w_ih), g.I = call.of_input->w_ih.size(1);
    return g;
  }
  static steps::Input called(const cpu::Backward<float>& g, int64_t columns) {
    return cpu::kernels().loop_input_gradient_f32(g, columns);
  }
  static steps::Input called(const cpu::Backward<double>& g, int64_t columns) {
    return cpu::kernels().loop_input_gradient_f64(g, columns);
  }

  struct Left {
    Ref sums;
    std::vector<int64_t> tensors, weights;
    int64_t w_ih, dgx;
    std::vector<int64_t> dstates;
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

  template <class S>
  void loop(Call& call) const {
    steps::Arguments a{};
    a.T = call.T, a.B = call.B, a.H = H_;
    a.reverse = call.reverse, a.training = call.training, a.in_place = call.in_place;
    const double work = double(products_) * double(call.T) * double(call.B);
    a.rows =
        crowd().threads(call.rows, product_ns(work, scalar_bytes(), cpu::kernels().vector_bytes));
    a.units = crowd().known() ? 1 : call.units;
    a.lengths = cpu::data<const int64_t>(call.lengths);
    a.resets = cpu::data<const bool>(call.resets);
    std::vector<steps::Buffer> buffers;
    for (const auto& [base, init, last, width, kind, clear] : buffers_)
      buffers.push_back({nullptr, nullptr, nullptr, width, kind, clear});
    std::vector<const void*> weights;
    for (const Tensor& weight : call.weights) weights.push_back(weight.const_data_ptr());
    a.buffers = buffers.data(), a.weights = weights.data();
    a.views = views_.data(), a.constants = constants_.data();
    a.grad_clip_time = call.grad_clip_time, a.team = &run_team;
    const int64_t own = lines(bytes_(&a));
    int64_t size = own;
    for (const Made& made : made_) size += room(made, call.B);
    cpu::Forward<S> f;
    if (call.input) {
      f = forward_of<S>(call, a);
      size += cpu::kernels().input_room(columns(), f.B, f.I, scalar_bytes(), f.split);
    }
    cpu::Backward<S> g;
    if (call.of_input) {
      g = backward_of<S>(call);
      size += cpu::kernels().input_gradient_room(call.of_input->w_ih.size(0), g.I, scalar_bytes());
    }
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
      if (call.input && base == 0) buffers[k].kind = static_cast<int64_t>(steps::Kind::kMade);
    }
    steps::Input input;
    if (call.input) {
      f.workspace = next;
      input = called(f, columns());
      a.input = &input;
    }
    if (call.of_input) {
      g.workspace = next;
      input = called(g, call.of_input->w_ih.size(0));
      a.input = &input;
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
  const int64_t products_;
  const bool in_place_;
  const std::vector<Shape> weights_;
  std::vector<steps::View> views_;
  const std::vector<double> constants_;
  const std::vector<Given> given_;
  const std::vector<Made> made_;
  const std::vector<Buffer> buffers_;
  std::optional<Left> left_;
};

// function, bytes: addresses, in a library that stays loaded.
Ref make_pass(int64_t function, int64_t bytes, int64_t H, ScalarType dtype, int64_t products,
              bool in_place, const std::vector<Shape>& weights, const std::vector<View>& views,
              const std::vector<double>& constants, const std::vector<Given>& given,
              const std::vector<Made>& made, const std::vector<Buffer>& buffers) {
  return Type<Pass>::make(std::make_unique<Pass>(function, bytes, H, dtype, products, in_place,
                                                 weights, views, constants, given, made, buffers));
}

// (rows, units, in words).
std::tuple<int, int, std::string> split(const Step& step, int64_t B, int64_t H, int scalar_bytes) {
  const auto [weights, gates, meetings] = step;
  const HostPlan chosen = plan_host({weights, gates, meetings}, B, H, {scalar_bytes, scalar_bytes},
                                    cpu::host_with(host_threads()));
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
  pass.method<&Pass::leaves>("leaves", "*, sums, tensors, weights, w_ih, dgx, dstates");
  pass.method<&Pass::gradients>("gradients",
                                "given, x, weights, lengths, resets, *, of_input, of_weights, "
                                "rows, units, reverse, grad_clip_time");
  pass.method<&Pass::layer>("layer",
                            "x, states, weights, w_ih, b_ih, rows, units, training, reverse");
  pass.method<&Pass::layer_gradients>(
      "layer_gradients", "given, x, weights, of_input, of_weights, rows, units, reverse");
  Type<Pass>::add("rnnfast._cpu.Pass", pass);
  bind<&make_pass>(functions, "cpu_pass",
                   "*, function, bytes, H, dtype, products, in_place, weights, views, constants, "
                   "given, made, buffers");
}

}  // namespace rnnfast::python
