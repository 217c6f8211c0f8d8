// The gradients of a scan's weights, from what its backward left: for Python, on CPU tensors that
// rnnfast/backends/cpu.py has prepared.
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "cpu/call.h"
#include "cpu/product.h"
#include "cpu/threads.h"
#include "cpu/weight_sums.h"
#include "python/bind.h"
#include "python/module.h"
#include "python/scan.h"
#include "python/tensor.h"

namespace rnnfast::python {
namespace {

using Optional = std::optional<Tensor>;
using Names = std::vector<std::string>;

// As `checked`, where there may be nothing missing.
Tensor given(const char* name, const Optional& tensor, ScalarType dtype, const Sizes& shape) {
  check_value(tensor.has_value(), name, " must be given");
  return checked(name, *tensor, dtype, shape);
}

// What backward left, and what it is multiplied with; and the gradients to be made of it.
struct Left {
  const CellInfo& cell;
  int64_t T, B, H, P, groups;
  Tensor dgx, y, h0;
  Optional x{}, extra{}, dgh_own{}, dh_total{}, lengths{}, resets{};
  Optional dw_ih{}, dw_hh{}, dw_hr{}, db_ih{}, db_hh{};

  Optional& gradient(const std::string& weight) {
    if (weight == "w_ih") return dw_ih;
    if (weight == "w_hh") return dw_hh;
    if (weight == "w_hr") return dw_hr;
    if (weight == "b_ih") return db_ih;
    check_value(weight == "b_hh", "no weight is called ", weight);
    return db_hh;
  }
  Shape shape_of(const std::string& weight) const {
    Shape shape{cell.gates * H};
    if (weight == "w_ih") shape.push_back(x->size(2));
    if (weight == "w_hh") shape.push_back(P);
    if (weight == "w_hr") shape = {P, H};
    if (groups > 0) shape.insert(shape.begin(), groups);
    return shape;
  }
};

// Where sums go: the gradients' own memory or, of 16-bit ones, a piece of one array, from which they
// are rounded when all is added up.
template <class X>
class Results {
  using S = cpu::Wide<X>;

 public:
  explicit Results(const Left& left) : left_(left) {
    int64_t total = 0;
    for (const Optional* gradient : all()) total += *gradient ? (*gradient)->numel() : 0;
    if (cpu::kNarrow<X>) sums_ = empty({total}, ScalarType::Float);
  }
  S* room(const Optional& gradient) const {
    if (!gradient) return nullptr;
    if constexpr (!cpu::kNarrow<X>) return cpu::data<S>(*gradient);
    int64_t first = 0;
    for (const Optional* other : all()) {
      if (other == &gradient) break;
      first += *other ? (*other)->numel() : 0;
    }
    return cpu::data<S>(*sums_) + first;
  }
  void round([[maybe_unused]] int threads) const {
    if constexpr (cpu::kNarrow<X>) {
      constexpr int64_t kWorthThreads = 1 << 16;
      for (const Optional* gradient : all()) {
        if (!*gradient) continue;
        const int64_t n = (*gradient)->numel();
        X* const to = cpu::data<X>(**gradient);
        const S* const from = room(*gradient);
        cpu::on_threads(n < kWorthThreads ? 1 : threads, [&](int id, int found) {
          const int64_t begin = n * id / found, end = n * (id + 1) / found;
          round(to + begin, from + begin, end - begin);
        });
      }
    }
  }

 private:
  static void round(cpu::BFloat16* to, const float* from, int64_t n) {
    cpu::kernels().bf16.round(to, from, n);
  }
  static void round(cpu::Half* to, const float* from, int64_t n) {
    cpu::kernels().f16.round(to, from, n);
  }
  std::array<const Optional*, 5> all() const {
    return {&left_.dw_ih, &left_.dw_hh, &left_.dw_hr, &left_.db_ih, &left_.db_hh};
  }

  const Left& left_;
  Optional sums_;
};

// D: what the gradients of gates are stored as, X: what they are multiplied with.
template <class D, class X>
void add_up(const Left& left, bool reverse, int threads) {
  using cpu::data;
  const Results<X> results(left);
  cpu::WeightGradients<D, X> w;
  if (left.x) w.I = left.x->size(2), w.x_step = left.x->stride(0), w.x_row = left.x->stride(1);
  w.x = data<const X>(left.x), w.y = data<const X>(left.y), w.h0 = data<const X>(left.h0);
  w.extra = data<const X>(left.extra), w.dgx = data<const D>(left.dgx);
  w.dgh_own = data<const D>(left.dgh_own), w.dh_total = data<const D>(left.dh_total);
  w.dw_ih = results.room(left.dw_ih), w.dw_hh = results.room(left.dw_hh);
  w.dw_hr = results.room(left.dw_hr);
  w.db_ih = results.room(left.db_ih), w.db_hh = results.room(left.db_hh);
  cpu::Sums<D, X> sums;
  sums.T = left.T, sums.B = left.B, sums.groups = left.groups, sums.reverse = reverse;
  sums.lengths = data<const int64_t>(left.lengths), sums.resets = data<const bool>(left.resets);
  cpu::WeightSums<D, X>(left.cell, left.H, left.P, w, sums);
  const WithoutGil no_gil;
  cpu::add_up(sums, threads, cpu::scratch);
  results.round(threads);
}

// Of any strides but the last.
Tensor input(const Optional& x, ScalarType dtype, int64_t T, int64_t B) {
  check_value(x && x->is_cpu() && x->dim() == 3, "w_ih needs x, 3-D and on the CPU");
  check_type(x->scalar_type() == dtype, "x must be ", dtype, ", got ", x->scalar_type());
  check_value(x->size(0) == T && x->size(1) == B,
              "x must have the steps and sequences of dgx, got ", x->sizes());
  check_value(x->has_memory(), "x has no memory");
  const Tensor values = x->resolve_neg();
  return values.stride(2) == 1 ? values : values.contiguous();
}

// Those of `names`, of w_ih (of which x [T, B, I] is needed), w_hh, b_ih, b_hh and w_hr, in their
// order. dgx [T, B, G·H], dgh_own and dh_total as backward left them. Where there are groups, of each
// of so many parts of the batch: [groups, …].
std::vector<Tensor> weight_gradients(const std::string& name, const Names& names, const Optional& x,
                                     const Tensor& y, const Optional& extra, const Tensor& h0,
                                     const Tensor& dgx, const Optional& dgh_own,
                                     const Optional& dh_total, const Optional& lengths,
                                     const Optional& resets, bool reverse, int64_t groups) {
  const CellInfo& cell = find_cell(name);
  const ScalarType dtype = y.scalar_type(), stored = dgx.scalar_type(), summed = wide(dtype);
  check_type(is_number(dtype), "expected float32, float64, bfloat16 or float16, got ", dtype);
  const bool pairs = dtype == ScalarType::BFloat16 && stored == dtype;
  check_type(stored == summed || (pairs && cpu::in_pairs<cpu::BFloat16>()), "dgx must be ", summed,
             ", got ", stored);
  check_value(dgx.dim() == 3 && y.dim() == 3, "dgx and y must be 3-D");
  const int64_t T = dgx.size(0), B = dgx.size(1), H = dgx.size(2) / cell.gates, P = y.size(2);
  check_value(cell.projected() || P == H, "y must be as wide as a gate");
  check_value(groups >= 0 && (groups == 0 || B % groups == 0), "a batch of ", B,
              " has no groups of one size, ", groups);
  Left left{cell,
            T,
            B,
            H,
            P,
            groups,
            given("dgx", dgx, stored, {T, B, cell.gates * H}),
            given("y", y, dtype, {T, B, P}),
            given("h0", h0, dtype, {B, P})};
  if (cell.own_gate >= 0) left.dgh_own = given("dgh_own", dgh_own, stored, {T, B, H});
  if (cell.projected()) left.dh_total = given("dh_total", dh_total, stored, {T, B, P});
  if (cell.has_extra()) left.extra = given("extra", extra, dtype, {T, B, H});
  if (lengths) left.lengths = checked("lengths", lengths, ScalarType::Long, {B});
  if (resets) left.resets = checked("resets", resets, ScalarType::Bool, {T, B});
  std::vector<Tensor> made;
  for (const std::string& weight : names) {
    if (weight == "w_ih") left.x = input(x, dtype, T, B);
    Optional& gradient = left.gradient(weight);
    check_value(!gradient, weight, " is named twice");
    check_value(weight != "w_hr" || cell.projected(), "w_hr is for projected cells");
    gradient = empty(left.shape_of(weight), dtype);
    made.push_back(*gradient);
  }
  const int threads = host_threads();
  cpu::with_storage(dtype, [&](auto x) {
    using X = typename decltype(x)::Type;
    if (pairs) return add_up<cpu::BFloat16, cpu::BFloat16>(left, reverse, threads);
    add_up<cpu::Wide<X>, X>(left, reverse, threads);
  });
  return made;
}

// dgx·W_ih: the gradient of x.
template <class S>
void of_input(const Tensor& dgx, const Tensor& w_ih, const Tensor& dx, int threads) {
  cpu::Gemm<S> g;
  g.M = dgx.size(0) * dgx.size(1), g.N = w_ih.size(1), g.K = w_ih.size(0);
  g.a = dgx.const_data_ptr<S>(), g.a_row = g.K, g.a_column = 1;
  g.b = w_ih.const_data_ptr<S>(), g.b_row = g.N, g.b_column = 1;
  g.c = dx.mutable_data_ptr<S>(), g.c_row = g.N;
  const WithoutGil no_gil;
  cpu::multiply(g, threads, cpu::scratch);
}

}  // namespace

Tensor input_gradient(const Tensor& dgx, const Tensor& w_ih_) {
  const ScalarType dtype = dgx.scalar_type();
  check_number(dtype);
  check_value(w_ih_.dim() == 2, "w_ih must be 2-D");
  const Tensor w_ih = checked("w_ih", w_ih_, dtype, {dgx.size(2), w_ih_.size(1)});
  const Tensor dx = empty({dgx.size(0), dgx.size(1), w_ih.size(1)}, dtype);
  if (dx.numel() > 0) {
    dtype == ScalarType::Float ? of_input<float>(dgx, w_ih, dx, host_threads())
                               : of_input<double>(dgx, w_ih, dx, host_threads());
  }
  return dx;
}

namespace {

using Gradients = std::tuple<Optional, Tensor, Optional, std::vector<Tensor>>;

// (dx if `of_input`, dh0, dc0, which have no meaning unless `of_states`, the gradients of the weights
// of these names), of a scan of x that keeps no trace of the other states.
Gradients gradients(const std::string& cell, const Names& names, bool of_input, bool of_states,
                    const Tensor& x, const Tensor& w_ih, const Tensor& gates, const Optional& extra,
                    const Tensor& y, const Optional& c, const Tensor& w_hh, const Optional& w_hr,
                    const Tensor& h0, const Optional& c0, const Optional& lengths,
                    const Optional& resets, bool reverse, const Optional& dy, const Optional& dc,
                    const Tensor& dh_last, const Optional& dc_last, double grad_clip_time,
                    int64_t groups) {
  const auto [dgx, dgh_own, dh_total, dh0, dc0] =
      backward(cell, gates, extra, y, c, w_hh, w_hr, h0, c0, lengths, resets, reverse, dy, dc,
               dh_last, dc_last, grad_clip_time, std::nullopt, of_states);
  std::vector<Tensor> made;
  if (!names.empty())
    made = weight_gradients(cell, names, x, y, extra, h0, dgx, dgh_own, dh_total, lengths, resets,
                            reverse, groups);
  Optional dx;
  if (of_input) dx = input_gradient(dgx, w_ih);
  return {dx, dh0, dc0, made};
}

// Those of a layer of one direction, as `layer` of cpu.cpp made it; the states and the gradients of
// the last ones are [1, B, …], and what is not given of them is zero.
Gradients layer_gradients(const std::string& name, const Names& names, bool of_input,
                          bool of_states, const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                          const Optional& w_hr, const Optional& h0, const Optional& c0,
                          const Tensor& y, const Optional& c, const Optional& extra,
                          const Optional& gates, const Optional& dy, const Optional& dh,
                          const Optional& dc) {
  const ScalarType dtype = y.scalar_type();
  check_value(y.dim() == 3, "y must be 3-D");
  const int64_t B = y.size(1), P = y.size(2), H = w_hr ? w_hr->size(1) : P;
  const auto state = [&](const char* of, const Optional& given, int64_t width) {
    return first_state(of, given, dtype, B, width);
  };
  Optional c_first, dc_last;
  if (find_cell(name).states == 2) c_first = state("c0", c0, H), dc_last = state("dc", dc, H);
  return gradients(name, names, of_input, of_states, x, w_ih, gates ? *gates : y, extra, y, c, w_hh,
                   w_hr, state("h0", h0, P), c_first, std::nullopt, std::nullopt, false, dy,
                   std::nullopt, state("dh", dh, P), dc_last, 0, 0);
}

}  // namespace

void bind_gradients(std::vector<PyMethodDef>& functions) {
  bind<&weight_gradients>(functions, "cpu_weight_gradients",
                          "*, cell, names, x, y, extra, h0, dgx, dgh_own, dh_total, lengths, "
                          "resets, reverse, groups");
  bind<&gradients>(
      functions, "cpu_gradients",
      "*, cell, names, of_input, of_states, x, w_ih, gates, extra, y, c, w_hh, w_hr, h0, c0, "
      "lengths, resets, reverse, dy, dc, dh_last, dc_last, grad_clip_time, groups");
  bind<&layer_gradients>(
      functions, "cpu_layer_gradients",
      "cell, names, of_input, of_states, x, w_ih, w_hh, w_hr, h0, c0, y, c, extra, gates, "
      "dy, dh, dc");
}

}  // namespace rnnfast::python
