#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "cells/math.h"
#include "check.h"
#include "random.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A number for each value of T, in order: neighbours differ by 1.
template <class T, class Bits>
int64_t ordinal(T y) {
  static_assert(sizeof(T) == sizeof(Bits));
  Bits bits;
  std::memcpy(&bits, &y, sizeof y);
  return bits < 0 ? std::numeric_limits<Bits>::min() - bits : bits;
}

// How many ulps, that is steps from value to value, y is away from the correctly rounded result.
int64_t ulps(float y, double exact) {
  const float rounded = static_cast<float>(exact);
  return std::abs(ordinal<float, int32_t>(y) - ordinal<float, int32_t>(rounded));
}

int64_t ulps(double y, long double exact) {
  const double rounded = static_cast<double>(exact);
  return std::abs(ordinal<double, int64_t>(y) - ordinal<double, int64_t>(rounded));
}

// Largest error over every kStride-th of all floats: each exponent, both signs, subnormal numbers,
// infinities.
template <class F, class Exact>
int64_t worst_ulps(F&& f, Exact&& exact) {
  constexpr uint64_t kStride = 1021;
  int64_t worst = 0;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += kStride) {
    const uint32_t word = static_cast<uint32_t>(bits);
    float x;
    std::memcpy(&x, &word, sizeof x);
    const float y = f(x);
    if (std::isnan(x)) {
      CHECK(std::isnan(y));
    } else {
      CHECK(!std::isnan(y));
      worst = std::max(worst, ulps(y, exact(static_cast<double>(x))));
    }
  }
  return worst;
}

double exact_sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

TEST(float_sigmoid_is_within_two_ulps) {
  const int64_t worst = worst_ulps([](float x) { return rnnfast::sigmoid(x); }, exact_sigmoid);
  CHECK_IN(worst <= 2, std::to_string(worst) + " ulps");
}

TEST(float_tanh_is_within_two_ulps) {
  const int64_t worst =
      worst_ulps([](float x) { return rnnfast::tanh(x); }, [](double x) { return std::tanh(x); });
  CHECK_IN(worst <= 2, std::to_string(worst) + " ulps");
}

TEST(double_sigmoid_and_tanh_are_within_two_ulps) {
  Random random(1);
  for (int k = 0; k < 100000; ++k) {
    const double x = random.uniform(-1, 1) * std::exp(random.uniform(-20, 7));
    const long double wide = x;
    CHECK_IN(ulps(rnnfast::sigmoid(x), 1 / (1 + std::exp(-wide))) <= 2, check::show(x));
    CHECK_IN(ulps(rnnfast::tanh(x), std::tanh(wide)) <= 2, check::show(x));
  }
}

TEST(sigmoid_and_tanh_saturate) {
  for (const float x : {1000.0f, 1e30f, std::numeric_limits<float>::max(), kInf}) {
    CHECK(rnnfast::sigmoid(x) == 1.0f);
    CHECK(rnnfast::sigmoid(-x) == 0.0f);
    CHECK(rnnfast::tanh(x) == 1.0f);
    CHECK(rnnfast::tanh(-x) == -1.0f);
    CHECK(rnnfast::sigmoid(static_cast<double>(x)) == 1.0);
    CHECK(rnnfast::sigmoid(static_cast<double>(-x)) == 0.0);
    CHECK(rnnfast::tanh(static_cast<double>(x)) == 1.0);
    CHECK(rnnfast::tanh(static_cast<double>(-x)) == -1.0);
  }
}

TEST(sigmoid_has_subnormal_results) {
  const float y = rnnfast::sigmoid(-100.0f);  // 1 / (1 + e^100) would be 1 / inf
  CHECK(y > 0 && y < std::numeric_limits<float>::min());
  CHECK(rnnfast::sigmoid(-740.0) > 0);
}

TEST(nan_passes) {
  CHECK(std::isnan(rnnfast::sigmoid(kNaN)) &&
        std::isnan(rnnfast::sigmoid(static_cast<float>(kNaN))));
  CHECK(std::isnan(rnnfast::tanh(kNaN)) && std::isnan(rnnfast::tanh(static_cast<float>(kNaN))));
  CHECK(std::isnan(rnnfast::relu(kNaN)) && std::isnan(rnnfast::relu(static_cast<float>(kNaN))));
}

TEST(relu_and_its_slope_are_those_of_torch) {
  CHECK(rnnfast::relu(2.5f) == 2.5f && rnnfast::relu(-2.5f) == 0.0f && rnnfast::relu(0.0f) == 0.0f);
  CHECK(rnnfast::relu(kInf) == kInf && rnnfast::relu(-kInf) == 0.0f);
  CHECK(rnnfast::relu_backward(3.0, 1e-300) == 3.0);
  CHECK(rnnfast::relu_backward(3.0, 0.0) == 0.0);
  CHECK(rnnfast::relu_backward(kInf, 0.0f) == 0.0f);
  CHECK(rnnfast::relu_backward(3.0, kNaN) == 3.0);
}

TEST(derivatives_agree_with_finite_differences) {
  for (double x = -8; x <= 8; x += 0.37) {
    const double sigmoid_slope = finite_difference(x, [&] { return rnnfast::sigmoid(x); });
    CHECK_NEAR(rnnfast::sigmoid_backward(2.0, rnnfast::sigmoid(x)), 2 * sigmoid_slope, 1e-11);
    const double tanh_slope = finite_difference(x, [&] { return rnnfast::tanh(x); });
    CHECK_NEAR(rnnfast::tanh_backward(2.0, rnnfast::tanh(x)), 2 * tanh_slope, 1e-11);
    const double relu_slope = finite_difference(x, [&] { return rnnfast::relu(x); });
    CHECK_NEAR(rnnfast::relu_backward(2.0, rnnfast::relu(x)), 2 * relu_slope, 1e-11);
  }
}
