// Each cell against formulas written out here in long double, and its backward against finite
// differences.
#include <array>
#include <type_traits>

#include "cells/list.h"
#include "check.h"
#include "random.h"

namespace {

using namespace rnnfast;
using Wide = long double;

Wide wide_sigmoid(Wide x) { return 1 / (1 + std::exp(-x)); }

// What a cell should compute of one unit: s_new, then saved.
struct Expected {
  std::vector<Wide> s_new, saved;
};

// `x` and `h` are gx and gh, `s` the states, in long double.
template <class C>
Expected expected(const Wide* x, const Wide* h, const Wide* s);

template <>
Expected expected<RnnTanh<double>>(const Wide* x, const Wide* h, const Wide*) {
  const Wide y = std::tanh(x[0] + h[0]);
  return {{y}, {y}};
}

template <>
Expected expected<RnnRelu<double>>(const Wide* x, const Wide* h, const Wide*) {
  const Wide y = std::fmax(x[0] + h[0], 0.0L);
  return {{y}, {y}};
}

template <>
Expected expected<Lstm<double>>(const Wide* x, const Wide* h, const Wide* s) {
  const Wide i = wide_sigmoid(x[0] + h[0]), f = wide_sigmoid(x[1] + h[1]);
  const Wide g = std::tanh(x[2] + h[2]), o = wide_sigmoid(x[3] + h[3]);
  const Wide c = f * s[1] + i * g;
  return {{o * std::tanh(c), c}, {i, f, g, o}};
}

template <>
Expected expected<LstmProj<double>>(const Wide* x, const Wide* h, const Wide* s) {
  Expected e = expected<Lstm<double>>(x, h, s);
  e.saved.push_back(e.s_new[0]);
  return e;
}

template <>
Expected expected<Gru<double>>(const Wide* x, const Wide* h, const Wide* s) {
  const Wide r = wide_sigmoid(x[0] + h[0]), z = wide_sigmoid(x[1] + h[1]);
  const Wide n = std::tanh(x[2] + r * h[2]);
  return {{(1 - z) * n + z * s[0]}, {r, z, n, h[2]}};
}

// With a product W_hn of one number, so that both phases stand in one formula: the last h is that
// weight, b_hn is 0.3.
constexpr double kBias = 0.3;

template <>
Expected expected<GruResetBefore<double>>(const Wide* x, const Wide* h, const Wide* s) {
  const Wide r = wide_sigmoid(x[0] + h[0]), z = wide_sigmoid(x[1] + h[1]);
  const Wide n = std::tanh(x[2] + (h[2] * (r * s[0]) + static_cast<Wide>(kBias)));
  return {{(1 - z) * n + z * s[0]}, {r, z, n, r * s[0]}};
}

template <>
Expected expected<Mgu<double>>(const Wide* x, const Wide* h, const Wide* s) {
  const Wide f = wide_sigmoid(x[0] + h[0]);
  const Wide n = std::tanh(x[1] + (h[1] * (f * s[0]) + static_cast<Wide>(kBias)));
  return {{(1 - f) * s[0] + f * n}, {f, n, f * s[0]}};
}

// One unit of cell C: inputs, results and gradients. gh of a later phase's gate is the number that
// stands for its rows of W_hh.
template <class C, class V>
struct Unit {
  static constexpr int G = C::kGates, S = C::kStates, K = C::kSaved;
  V gx[G], gh[G], s[S], s_new[S], saved[K];
  V ds_new[S], dgx[G], dgh[G], ds[S];

  void forward() { forward_from<0>(); }

  void backward() {
    V d[S];
    std::copy(ds_new, ds_new + S, d);
    backward_from<kGatePhases<C> - 1>(d);
  }

  template <int p>
  void forward_from() {
    constexpr Phase kPhase = C::kPhases[p];
    V gx_p[kPhase.gates], gh_p[kPhase.gates];
    for (int g = 0; g < kPhase.gates; ++g) {
      gx_p[g] = gx[kPhase.first + g];
      gh_p[g] = gh[kPhase.first + g];
      if constexpr (p > 0) gh_p[g] = gh_p[g] * saved[kPhase.operand] + V(kBias);
    }
    C::forward(At<p>{}, gx_p, gh_p, s, s_new, saved);
    if constexpr (p + 1 < kGatePhases<C>) forward_from<p + 1>();
  }

  template <int p>
  void backward_from(V (&d)[S]) {
    constexpr Phase kPhase = C::kPhases[p];
    C::backward(At<p>{}, d, saved, s, dgx, dgh, ds);
    if constexpr (p > 0) {
      std::fill(d, d + S, V(0));
      for (int g = kPhase.first; g < kPhase.first + kPhase.gates; ++g) {
        d[0] = d[0] + gh[g] * dgh[g];
        dgh[g] = dgh[g] * saved[kPhase.operand];
      }
      backward_from<p - 1>(d);
    }
  }

  V loss() {
    forward();
    V sum = V(0);
    for (int k = 0; k < S; ++k) sum += ds_new[k] * s_new[k];
    return sum;
  }

  // Ordinary values, and every third unit one that saturates the activations.
  void draw(Random& random, int n) {
    const double scale = n % 3 == 0 ? 40 : 2;
    random.fill(gx, G, scale);
    random.fill(gh, G, kGatePhases<C> == 1 ? scale : 2);
    random.fill(s, S, 2);
    random.fill(ds_new, S, 1);
  }
};

template <template <class> class Cell, class V>
void compare_forward(const char* name, double tolerance) {
  using C = Cell<V>;
  Random random(2);
  for (int n = 0; n < 3000; ++n) {
    Unit<C, V> unit;
    unit.draw(random, n);
    unit.forward();
    Wide gx[C::kGates], gh[C::kGates], s[C::kStates];
    std::copy(std::begin(unit.gx), std::end(unit.gx), gx);
    std::copy(std::begin(unit.gh), std::end(unit.gh), gh);
    std::copy(std::begin(unit.s), std::end(unit.s), s);
    const Expected e = expected<Cell<double>>(gx, gh, s);
    for (int k = 0; k < C::kStates; ++k) CHECK_NEAR_IN(unit.s_new[k], e.s_new[k], tolerance, name);
    for (int k = 0; k < C::kSaved; ++k) CHECK_NEAR_IN(unit.saved[k], e.saved[k], tolerance, name);
  }
}

template <template <class> class Cell>
void compare_backward(const char* name) {
  using C = Cell<double>;
  Random random(3);
  for (int n = 0; n < 1000; ++n) {
    Unit<C, double> unit;
    unit.draw(random, n);
    const bool at_kink =
        std::is_same_v<C, RnnRelu<double>> && std::fabs(unit.gx[0] + unit.gh[0]) < 1e-3;
    if (at_kink) continue;
    unit.forward();
    unit.backward();
    Unit<C, double> probe = unit;
    const auto slope = [&](double& x) {
      return finite_difference(x, [&] { return probe.loss(); });
    };
    for (int k = 0; k < C::kGates; ++k) CHECK_NEAR_IN(unit.dgx[k], slope(probe.gx[k]), 1e-8, name);
    for (int k = 0; k < C::kGates; ++k) CHECK_NEAR_IN(unit.dgh[k], slope(probe.gh[k]), 1e-8, name);
    // A projected cell's s[0] and every cell's path through gh are the caller's: ds is the direct
    // part.
    for (int k = 0; k < C::kStates; ++k) CHECK_NEAR_IN(unit.ds[k], slope(probe.s[k]), 1e-8, name);
  }
}

}  // namespace

// A vector type of two lanes as a kernel would define it: in a namespace of its own, unknown to
// math.h.
namespace lanes {

struct Two {
  double v[2];
  Two() = default;
  explicit Two(double x) : v{x, x} {}
  Two(double a, double b) : v{a, b} {}
};

Two operator+(Two a, Two b) { return {a.v[0] + b.v[0], a.v[1] + b.v[1]}; }
Two operator-(Two a, Two b) { return {a.v[0] - b.v[0], a.v[1] - b.v[1]}; }
Two operator*(Two a, Two b) { return {a.v[0] * b.v[0], a.v[1] * b.v[1]}; }
Two& operator+=(Two& a, Two b) { return a = a + b; }
Two sigmoid(Two a) { return {rnnfast::sigmoid(a.v[0]), rnnfast::sigmoid(a.v[1])}; }
Two tanh(Two a) { return {rnnfast::tanh(a.v[0]), rnnfast::tanh(a.v[1])}; }
Two relu(Two a) { return {rnnfast::relu(a.v[0]), rnnfast::relu(a.v[1])}; }
Two relu_backward(Two dy, Two y) {
  return {rnnfast::relu_backward(dy.v[0], y.v[0]), rnnfast::relu_backward(dy.v[1], y.v[1])};
}

}  // namespace lanes

namespace {

template <int N>
void set_lane(lanes::Two (&to)[N], int lane, const double (&from)[N]) {
  for (int k = 0; k < N; ++k) to[k].v[lane] = from[k];
}

template <int N>
void check_lane(const lanes::Two (&got)[N], int lane, const double (&want)[N]) {
  for (int k = 0; k < N; ++k) CHECK(got[k].v[lane] == want[k]);
}

template <template <class> class Cell>
void compare_lanes() {
  Random random(4);
  Unit<Cell<lanes::Two>, lanes::Two> both;
  Unit<Cell<double>, double> one[2];
  for (int lane = 0; lane < 2; ++lane) {
    one[lane].draw(random, 1);
    one[lane].forward();
    one[lane].backward();
    set_lane(both.gx, lane, one[lane].gx);
    set_lane(both.gh, lane, one[lane].gh);
    set_lane(both.s, lane, one[lane].s);
    set_lane(both.ds_new, lane, one[lane].ds_new);
  }
  both.forward();
  both.backward();
  for (int lane = 0; lane < 2; ++lane) {
    check_lane(both.s_new, lane, one[lane].s_new);
    check_lane(both.saved, lane, one[lane].saved);
    check_lane(both.dgx, lane, one[lane].dgx);
    check_lane(both.dgh, lane, one[lane].dgh);
    check_lane(both.ds, lane, one[lane].ds);
  }
}

}  // namespace

TEST(forward_agrees_with_the_formulas) {
#define COMPARE(type, name)                   \
  compare_forward<type, double>(name, 2e-14); \
  compare_forward<type, float>(name, 1e-5);
  RNNFAST_CELLS(COMPARE)
#undef COMPARE
}

TEST(backward_agrees_with_finite_differences) {
#define COMPARE(type, name) compare_backward<type>(name);
  RNNFAST_CELLS(COMPARE)
#undef COMPARE
}

TEST(a_vector_type_brings_its_own_functions) {
#define COMPARE(type, name) compare_lanes<type>();
  RNNFAST_CELLS(COMPARE)
#undef COMPARE
}

TEST(relu_has_slope_zero_at_zero) {
  Unit<RnnRelu<double>, double> unit{};
  unit.ds_new[0] = 1;
  unit.forward();
  unit.backward();
  CHECK(unit.dgx[0] == 0 && unit.dgh[0] == 0);
}

TEST(saturated_cells_stay_finite) {
  Random random(5);
  for (const CellInfo& cell : kCells) {
    if (cell.id == CellId::kRnnRelu) continue;  // unbounded by nature
    dispatch(cell.id, [&](auto tag) {
      using C = typename decltype(tag)::template Cell<float>;
      for (int n = 0; n < 1000; ++n) {
        Unit<C, float> unit;
        unit.draw(random, n);
        for (float& x : unit.gx) x *= 1e30f;
        unit.forward();
        unit.backward();
        for (int k = 0; k < C::kStates; ++k)
          CHECK_IN(std::isfinite(unit.s_new[k]), std::string(cell.name));
        for (int k = 0; k < C::kGates; ++k)
          CHECK_IN(std::isfinite(unit.dgx[k]), std::string(cell.name));
        for (int k = 0; k < C::kStates; ++k)
          CHECK_IN(std::isfinite(unit.ds[k]), std::string(cell.name));
      }
    });
  }
}
