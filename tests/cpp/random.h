// Random numbers that are the same with every standard library (the std distributions are not), and
// derivatives by finite differences.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}

  double uniform(double from, double to) { return from + (to - from) * (engine_() / 4294967296.0); }
  int64_t integer(int64_t bound) {
    return static_cast<int64_t>(uniform(0, static_cast<double>(bound)));
  }

  template <class V>
  void fill(V* values, size_t count, double scale) {
    for (size_t k = 0; k < count; ++k) values[k] = static_cast<V>(uniform(-scale, scale));
  }

  std::vector<double> vector(int64_t count, double scale) {
    std::vector<double> values(count);
    fill(values.data(), values.size(), scale);
    return values;
  }

 private:
  std::mt19937 engine_;
};

// d loss / d x, by central differences of fourth order. x is restored.
template <class Loss>
double finite_difference(double& x, Loss&& loss) {
  constexpr double kStep = 1e-4;
  const double x0 = x;
  const auto at = [&](double offset) {
    x = x0 + offset * kStep;
    return loss();
  };
  const double slope = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * kStep);
  x = x0;
  return slope;
}
