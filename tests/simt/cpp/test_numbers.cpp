// 16-bit floats and tf32 against what their formats say: a value is exact in double, and rounding
// takes the nearest, of two equally near the even one.
#include <cmath>
#include <limits>

#include "random.h"
#include "toys.h"

namespace {

using namespace toys;

double value_of(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits & 0x7FFF) >> mantissa_bits,
            mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

template <class S>
void check_every_code(int exponent_bits) {
  int wrong = 0;
  for (int code = 0; code < 65536; ++code) {
    const S stored{static_cast<uint16_t>(code)};
    const double value = value_of(stored.bits, exponent_bits);
    wrong += !same(to_float(stored), value);
    const S back = from_float<S>(static_cast<float>(value));
    wrong += !(std::isnan(value) ? std::isnan(to_float(back)) : back.bits == stored.bits);
  }
  CHECK(wrong == 0);
}

// Between two neighbouring codes: below the middle the lower, above it the upper, on it the even.
template <class S>
void check_rounding(int exponent_bits) {
  int wrong = 0;
  const int infinity = value_of(0x7C00, exponent_bits) == INFINITY ? 0x7C00 : 0x7F80;
  for (int code = 0; code + 1 < infinity; ++code) {
    const double low = value_of(code, exponent_bits), high = value_of(code + 1, exponent_bits);
    const float middle = static_cast<float>((low + high) / 2);
    if (middle != (low + high) / 2) continue;  // bf16's smallest: finer than a float
    const float below = std::nextafter(middle, 0.0f), above = std::nextafter(middle, INFINITY);
    for (const float sign : {1.0f, -1.0f}) {
      const int bit = sign < 0 ? 0x8000 : 0;
      wrong += from_float<S>(sign * below).bits != (bit | code);
      wrong += from_float<S>(sign * above).bits != (bit | (code + 1));
      wrong += from_float<S>(sign * middle).bits != (bit | (code + code % 2));
    }
  }
  CHECK(wrong == 0);
}

TEST(every_16_bit_code_is_the_value_that_its_format_says) {
  check_every_code<Bf16>(8);
  check_every_code<F16>(5);
}

TEST(rounding_is_to_the_nearest_even) {
  check_rounding<Bf16>(8);
  check_rounding<F16>(5);
  CHECK(from_float<F16>(65519.99f).bits == 0x7BFF);
  CHECK(from_float<F16>(65520.0f).bits == 0x7C00);
  CHECK(from_float<F16>(-1e30f).bits == 0xFC00);
  CHECK(from_float<Bf16>(3.4e38f).bits == 0x7F80);
  CHECK((pack2<F16>({0x1234}, {0xABCD}) == 0xABCD1234u));
}

TEST(tf32_rounds_halves_away_from_0) {
  CHECK(float_of(to_tf32(1.0f)) == 1.0f);
  CHECK(float_of(to_tf32(1.0f + 0x1p-11f)) == 1.0f + 0x1p-10f);
  CHECK(float_of(to_tf32(-1.0f - 0x1p-11f)) == -1.0f - 0x1p-10f);
  CHECK(float_of(to_tf32(1.0f + 0x1p-11f - 0x1p-23f)) == 1.0f);
  CHECK(float_of(to_tf32(INFINITY)) == INFINITY);
  CHECK(std::isnan(float_of(to_tf32(NAN))));
  Random random(1);
  for (int i = 0; i < 1000; ++i) {
    const float value = static_cast<float>(random.uniform(-100, 100));
    const uint32_t bits = to_tf32(value);
    CHECK((bits & 0x1FFF) == 0);
    CHECK(std::fabs(float_of(bits) - value) <= 0x1p-11f * std::fabs(value));
  }
}

TEST(the_fast_functions_err_by_no_more_than_ptx_allows) {
  Random random(2);
  for (int i = 0; i < 1000; ++i) {
    const float x = static_cast<float>(random.uniform(-10, 10));
    CHECK_NEAR(exp2_fast(x) / std::exp2(double{x}), 1.0, 0x1p-22);
    CHECK_NEAR(reciprocal_fast(x) * double{x}, 1.0, 0x1p-22);
    CHECK_NEAR(tanh_fast(x) / std::tanh(double{x}), 1.0, 0x1p-11 + 0x1p-20);
  }
}

}  // namespace
