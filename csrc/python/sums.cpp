// Gradients of weights of any cell as one pass of sums (csrc/cpu/sums.h), for Python: which sums
// they are was worked out before, by rnnfast/steps/sums.py.
#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/call.h"
#include "cpu/weight_sums.h"
#include "python/bind.h"
#include "python/module.h"
#include "python/scan.h"
#include "python/tensor.h"
#include "python/type.h"

namespace rnnfast::python {
namespace {

using Optional = std::optional<Tensor>;

// tensor, initial, offset, width: columns of a tensor [T, B, …], all of them where width is 0; of
// states, which `initial` [B, …] are those before the first step of, each step's before. -1: none.
using Operand = std::tuple<int64_t, int64_t, int64_t, int64_t>;
// The operands that a weight multiplies in a step, or their gradients: terms of one sum.
template <class T>
using Terms = std::vector<T>;
// tensor, offset, width.
using Columns = std::tuple<int64_t, int64_t, int64_t>;
// gradient, operand, result, offset, first, row, column: the product's value (m, n) is the result's
// element offset + (first + m)·row + n·column; where row is 0, the operand's width.
using Product = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// gradient, result, offset: the sums of the gradients themselves.
using Sum = std::tuple<int64_t, int64_t, int64_t>;
// tensor [B, …], offset, width, result, offset: sums over sequences.
using OverSequences = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;

template <class S>
class Call;

class SumPlan {
 public:
  SumPlan(std::vector<Terms<Operand>> operands, std::vector<Terms<Columns>> gradients,
          std::vector<Product> products, std::vector<Sum> sums,
          std::vector<OverSequences> sequences)
      : operands_(std::move(operands)),
        gradients_(std::move(gradients)),
        products_(std::move(products)),
        sums_(std::move(sums)),
        sequences_(std::move(sequences)) {
    check_value(operands_.size() <= cpu::kMostOperands && gradients_.size() <= cpu::kMostGradients,
                "more operands or gradients than one pass takes");
    const auto fits = [](const auto& terms) {
      return !terms.empty() && terms.size() <= cpu::kMostTerms;
    };
    check_value(std::all_of(operands_.begin(), operands_.end(), fits) &&
                    std::all_of(gradients_.begin(), gradients_.end(), fits),
                "a sum has no terms, or more than one pass takes");
  }

  // Of `tensors` the first is of the gradients [T, B, …]. Results are like `weights`, in order.
  std::vector<Tensor> run(const std::vector<Tensor>& tensors, const std::vector<Tensor>& weights,
                          const Optional& lengths, const Optional& resets, bool reverse) const;

 private:
  template <class S>
  friend class Call;

  std::vector<Terms<Operand>> operands_;
  std::vector<Terms<Columns>> gradients_;
  std::vector<Product> products_;
  std::vector<Sum> sums_;
  std::vector<OverSequences> sequences_;
};

// A product that goes into its result column by column.
struct Turned {
  Tensor product, result;
  int64_t to, column;
};

template <class S>
class Call {
  // Of each sequence `width` values, which are summed over sequences.
  struct Column {
    const S* from;
    int64_t row, width;
    S* to;
  };

 public:
  Call(const SumPlan& plan, const std::vector<Tensor>& tensors, ScalarType dtype)
      : plan_(plan),
        dtype_(dtype),
        tensors_(tensors),
        T_(tensors[0].size(0)),
        B_(tensors[0].size(1)) {}

  std::vector<Tensor> made(const std::vector<Tensor>& weights, const Optional& lengths,
                           const Optional& resets, bool reverse) {
    for (const Tensor& weight : weights) results_.push_back(empty(weight.sizes(), dtype_));
    written_.assign(results_.size(), 0);
    sums_.T = T_, sums_.B = B_, sums_.reverse = reverse;
    sums_.lengths = cpu::data<const int64_t>(lengths);
    sums_.resets = cpu::data<const bool>(resets);
    for (const Terms<Operand>& operand : plan_.operands_) add(operand);
    for (const Terms<Columns>& gradient : plan_.gradients_) add(gradient);
    for (const Product& product : plan_.products_) add(product);
    for (const Sum& sum : plan_.sums_) add_sum(sum);
    for (const OverSequences& sum : plan_.sequences_) add(sum);
    for (size_t k = 0; k < results_.size(); ++k) {  // of which no element is in two sums
      if (written_[k] < results_[k].numel())
        std::fill_n(results_[k].template mutable_data_ptr<S>(), results_[k].numel(), S(0));
    }
    if (sums_.gradient_count > 0) {
      const int threads = host_threads();
      const WithoutGil no_gil;
      cpu::add_up(sums_, threads, cpu::scratch);
    }
    for (const Turned& turned : turned_) turn(turned);
    for (const Column& column : columns_) add_up(column);
    return results_;
  }

 private:
  // Its rows must be whole: of the last axis.
  const Tensor& steps(int64_t k, int64_t offset, int64_t width) {
    Tensor& tensor = tensors_.at(k);
    check_value(tensor.is_cpu() && tensor.dim() == 3,
                "a tensor of steps must be 3-D and on the CPU");
    check_type(tensor.scalar_type() == dtype_, "tensors must be ", dtype_, ", got ",
               tensor.scalar_type());
    check_value(tensor.size(0) == T_ && tensor.size(1) == B_ && offset + width <= tensor.size(2),
                "a tensor of steps has the wrong shape ", tensor.sizes());
    tensor = tensor.values();
    if (tensor.stride(2) != 1) tensor = tensor.contiguous();
    return tensor;
  }

  const Tensor& sequences(int64_t k, int64_t offset, int64_t width) {
    Tensor& tensor = tensors_.at(k);
    check_value(tensor.dim() == 2 && offset + width <= tensor.size(1), "a tensor of sequences has ",
                "the wrong shape ", tensor.sizes());
    tensor = checked("a tensor", tensor, dtype_, {B_, tensor.size(1)});
    return tensor;
  }

  // Where `count` values go that reach over `extent` elements.
  S* place(int64_t result, int64_t offset, int64_t count, int64_t extent) {
    const Tensor& to = results_.at(result);
    check_value(offset >= 0 && offset + extent <= to.numel(), "a sum lies outside of its result");
    written_[result] += count;
    return to.mutable_data_ptr<S>() + offset;
  }

  void add(const Terms<Operand>& operand) {
    cpu::SumOperand<S>& o = sums_.operands[sums_.operand_count++];
    for (size_t term = 0; term < operand.size(); ++term) {
      auto [tensor, initial, offset, width] = operand[term];
      Tensor values = steps(tensor, offset, width);
      if (width == 0) width = values.size(2);
      check_value(term == 0 || width == o.N, "terms of one sum differ in width");
      o.N = width;
      if (initial >= 0) values = values.contiguous();  // whose rows and the states' lie alike
      held_.push_back(values);
      cpu::SumRows<S>& rows = o.terms[term];
      rows = {values.const_data_ptr<S>() + offset, values.stride(0), values.stride(1), nullptr};
      if (initial < 0) continue;
      const Tensor& first = sequences(initial, offset, width);
      check_value(first.size(1) == values.size(2), "initial states of another width");
      rows.initial = first.const_data_ptr<S>() + offset;
      rows.step = B_ * values.size(2), rows.row = values.size(2);
    }
    sums_.terms = std::max(sums_.terms, static_cast<int>(operand.size()));
  }

  void add(const Terms<Columns>& gradient) {
    cpu::SumGradients<S>& g = sums_.gradients[sums_.gradient_count++];
    for (size_t term = 0; term < gradient.size(); ++term) {
      const auto [tensor, offset, width] = gradient[term];
      check_value(term == 0 || width == g.M, "terms of one sum differ in width");
      const Tensor values = steps(tensor, offset, width).contiguous();
      held_.push_back(values);
      g.M = width;
      g.terms[term] = {values.const_data_ptr<S>() + offset, values.size(2)};
    }
  }

  void add(const Product& product) {
    const auto [gradient, operand, result, offset, first, row, column] = product;
    check_value(gradient < sums_.gradient_count && operand < sums_.operand_count,
                "a product of what is not there");
    cpu::SumGradients<S>& g = sums_.gradients[gradient];
    const int64_t N = sums_.operands[operand].N, M = g.M, apart = row ? row : N;
    if (M == 0 || N == 0) return;
    S* const to =
        place(result, offset + first * apart, M * N, (M - 1) * apart + (N - 1) * column + 1);
    check_value(!g.products[operand].to, "a product is made twice");
    if (column == 1) {
      g.products[operand] = {to, apart};
      return;
    }
    check_value(apart == 1, "a product has neither rows nor columns together");
    turned_.push_back({empty({M, N}, dtype_), results_[result],
                       to - results_[result].mutable_data_ptr<S>(), column});
    g.products[operand] = {turned_.back().product.mutable_data_ptr<S>(), N};
  }

  void add_sum(const Sum& sum) {
    const auto [gradient, result, offset] = sum;
    check_value(gradient < sums_.gradient_count, "a sum of what is not there");
    cpu::SumGradients<S>& g = sums_.gradients[gradient];
    check_value(!g.biases[1], "a gradient has more than two sums");
    (g.biases[0] ? g.biases[1] : g.biases[0]) = place(result, offset, g.M, g.M);
  }

  static void turn(const Turned& turned) {
    constexpr int64_t kBlock = 16;
    const int64_t M = turned.product.size(0), N = turned.product.size(1);
    const S* const from = turned.product.const_data_ptr<S>();
    S* const to = turned.result.mutable_data_ptr<S>() + turned.to;
    for (int64_t m0 = 0; m0 < M; m0 += kBlock) {
      for (int64_t n = 0; n < N; ++n) {
        const int64_t end = std::min(M, m0 + kBlock);
        for (int64_t m = m0; m < end; ++m) to[m + n * turned.column] = from[m * N + n];
      }
    }
  }

  void add(const OverSequences& sum) {
    const auto [tensor, from, width, result, offset] = sum;
    const Tensor& values = sequences(tensor, from, width);
    columns_.push_back({values.const_data_ptr<S>() + from, values.size(1), width,
                        place(result, offset, width, width)});
  }

  void add_up(const Column& column) const {
    std::vector<double> totals(column.width);
    for (int64_t b = 0; b < B_; ++b) {
      for (int64_t k = 0; k < column.width; ++k)
        totals[k] += double(column.from[b * column.row + k]);
    }
    for (int64_t k = 0; k < column.width; ++k) column.to[k] = S(totals[k]);
  }

  const SumPlan& plan_;
  const ScalarType dtype_;
  std::vector<Tensor> tensors_, held_, results_;
  std::vector<Turned> turned_;
  std::vector<Column> columns_;
  std::vector<int64_t> written_;  // elements of each result
  const int64_t T_, B_;
  cpu::Sums<S> sums_;
};

std::vector<Tensor> SumPlan::run(const std::vector<Tensor>& tensors,
                                 const std::vector<Tensor>& weights, const Optional& lengths_,
                                 const Optional& resets_, bool reverse) const {
  check_value(!tensors.empty() && tensors[0].dim() == 3, "the first tensor must be 3-D");
  const ScalarType dtype = tensors[0].scalar_type();
  check_number(dtype);
  const int64_t T = tensors[0].size(0), B = tensors[0].size(1);
  const Optional lengths = checked("lengths", lengths_, ScalarType::Long, {B});
  const Optional resets = checked("resets", resets_, ScalarType::Bool, {T, B});
  return dtype == ScalarType::Float
             ? Call<float>(*this, tensors, dtype).made(weights, lengths, resets, reverse)
             : Call<double>(*this, tensors, dtype).made(weights, lengths, resets, reverse);
}

Ref make_plan(const std::vector<Terms<Operand>>& operands,
              const std::vector<Terms<Columns>>& gradients, const std::vector<Product>& products,
              const std::vector<Sum>& sums, const std::vector<OverSequences>& sequences) {
  return Type<SumPlan>::make(
      std::make_unique<SumPlan>(operands, gradients, products, sums, sequences));
}

}  // namespace

std::vector<Tensor> added_up(const Ref& plan, const std::vector<Tensor>& tensors,
                             const std::vector<Tensor>& weights, const Optional& lengths,
                             const Optional& resets, bool reverse) {
  check_type(Type<SumPlan>::is(plan.get()), "sums must be what cpu_sum_plan() made");
  return held<SumPlan>(plan.get()).run(tensors, weights, lengths, resets, reverse);
}

void bind_sums(std::vector<PyMethodDef>& functions) {
  auto& plan = *new Type<SumPlan>;  // for as long as the process lives
  plan.method<&SumPlan::run>("run", "tensors, weights, lengths, resets, reverse");
  Type<SumPlan>::add("rnnfast._cpu.SumPlan", plan);
  bind<&make_plan>(functions, "cpu_sum_plan", "*, operands, gradients, products, sums, sequences");
}

}  // namespace rnnfast::python
