// Every set of host kernels that this processor has: each cell against the reference scan in
// double, however the threads share the work; and the accuracy of their tanh and sigmoid.
#include "cpu_scan.h"

namespace {

using namespace cpu_scan;

constexpr double kInf = std::numeric_limits<double>::infinity();

template <class S>
constexpr double kTolerance = std::is_same_v<S, float> ? 1e-5 : 1e-13;

// |found - expected| <= kTolerance · max(max |expected|, 1e-3), where `expected` is no NaN.
template <class S, class Found>
void check_close(const Found& found, const Numbers& expected, const std::string& context) {
  double scale = 1e-3;
  for (const double x : expected) scale = std::fmax(scale, std::fabs(x));
  for (size_t k = 0; k < expected.size(); ++k) {
    if (std::isnan(expected[k])) continue;
    const bool close = std::fabs(found[k] - expected[k]) <= kTolerance<S> * scale;
    if (close) continue;  // the context is costly to make
    CHECK_IN(close, context + "[" + std::to_string(k) + "]: " + check::show(found[k]) +
                        " against " + check::show(expected[k]));
  }
}

// What forward saved, in the order of the reference: [T, B, kSaved, H].
template <class S>
Numbers saved_of(const Inputs& in, const Run<S>& run) {
  const int64_t H = in.p.H, K = in.p.info().saved, G = in.p.info().gates;
  Numbers saved(in.p.saved_elements());
  for (int64_t k = 0; k < static_cast<int64_t>(saved.size()); ++k) {
    const int64_t row = k / (K * H), plane = k / H % K, j = k % H;
    if (in.p.info().saves_output) {
      saved[k] = run.y[row * H + j];
    } else {
      saved[k] = plane < G ? run.gates[(row * G + plane) * H + j] : run.extra[row * H + j];
    }
  }
  return saved;
}

// Gradients of the weights: sums over steps of what the kernels leave for them.
template <class S>
struct WeightGradients {
  Numbers w_hh, b_hh, w_hr;

  WeightGradients(const Inputs& in, const Run<S>& run)
      : w_hh(in.w_hh.size()), b_hh(in.p.gate_width()), w_hr(in.w_hr.size()) {
    const Rules rules = in.masks().rules(in.p);
    for (int64_t b = 0; b < in.p.B; ++b) {
      const auto row = [&](int64_t k) { return rules.time(k, b) * in.p.B + b; };
      for (int64_t k = 0; k < in.length(b); ++k) add(in, run, row(k), k == 0 ? -1 : row(k - 1));
    }
  }

 private:
  // Row `before`: of the step before, -1 for the initial state.
  void add(const Inputs& in, const Run<S>& run, int64_t row, int64_t before) {
    const int64_t H = in.p.H, P = in.p.P, GH = in.p.gate_width();
    const CellInfo& cell = in.p.info();
    const bool reset = !in.resets.empty() && in.resets[row];
    for (int64_t o = 0; o < GH; ++o) {
      const bool own = o / H == cell.own_gate, of_h = o / H < cell.phases[0].gates;
      const double d = own ? run.dgh_own[row * H + o % H] : run.dgx[row * GH + o];
      b_hh[o] += d;
      for (int64_t j = 0; j < P; ++j) {
        double from = reset ? 0 : before < 0 ? in.h0[row % in.p.B * P + j] : run.y[before * P + j];
        if (!of_h) from = run.extra[row * H + j];
        w_hh[o * P + j] += d * from;
      }
    }
    if (!cell.projected()) return;
    for (int64_t o = 0; o < P; ++o) {
      for (int64_t j = 0; j < H; ++j) {
        w_hr[o * H + j] += double(run.dh_total[row * P + o]) * run.extra[row * H + j];
      }
    }
  }
};

template <class S>
void check_zero_padding(const Inputs& in, const Buffer<S>& values, const std::string& context) {
  const int64_t rows = in.p.T * in.p.B, width = values.size() / std::max<int64_t>(rows, 1);
  for (int64_t k = 0; k < rows * width; ++k) {
    if (!in.alive(k / width)) CHECK_IN(values[k] == 0, context);
  }
}

template <class S>
void check_against_reference(const Inputs& in, const Expected& e, const Run<S>& run,
                             const std::string& label) {
  check_close<S>(run.y, e.y, label + " y");
  check_close<S>(run.c, e.c, label + " c");
  check_close<S>(run.h_last, e.h_last, label + " h_last");
  check_close<S>(run.c_last, e.c_last, label + " c_last");
  check_close<S>(saved_of(in, run), e.saved, label + " saved");
  check_close<S>(run.dgx, e.dgx, label + " dgx");
  check_close<S>(run.dh0, e.dh0, label + " dh0");
  check_close<S>(run.dc0, e.dc0, label + " dc0");
  const WeightGradients<S> d(in, run);
  check_close<S>(d.w_hh, e.dw_hh, label + " dw_hh");
  check_close<S>(d.b_hh, e.db_hh, label + " db_hh");
  check_close<S>(d.w_hr, e.dw_hr, label + " dw_hr");
  check_zero_padding(in, run.extra, label + " extra past an end");
  check_zero_padding(in, run.dgh_own, label + " dgh_own past an end");
  check_zero_padding(in, run.dh_total, label + " dh_total past an end");
}

constexpr cpu::Split kSplits[] = {{2, 1}, {1, 2}, {2, 2}};

template <class S>
void check_splits(const cpu::Kernels& kernels, const Inputs& in, const Run<S>& alone,
                  const std::string& label) {
  for (const cpu::Split split : kSplits) {
    const Run<S> run(kernels, in, split, true, true);
    const auto found = run.outputs(), expected = alone.outputs();
    for (size_t k = 0; k < found.size(); ++k) {
      CHECK_IN(found[k]->same_bits(*expected[k]), label + " on " + std::to_string(split.rows) +
                                                      " x " + std::to_string(split.units) +
                                                      " threads, output " + std::to_string(k));
    }
  }
}

template <class S>
void check_inference(const cpu::Kernels& kernels, const Inputs& in, const Run<S>& training,
                     const std::string& label) {
  for (const bool every_c : {false, true}) {
    const Run<S> run(kernels, in, {1, every_c ? 2 : 1}, false, every_c);
    CHECK_IN(run.y.same_bits(training.y), label + " inference y");
    CHECK_IN(run.h_last.same_bits(training.h_last), label + " inference h_last");
    CHECK_IN(run.c_last.same_bits(training.c_last), label + " inference c_last");
    CHECK_IN(!every_c || run.c.same_bits(training.c), label + " inference c");
  }
}

template <class S>
void check_kernels(const cpu::Kernels& kernels, const Inputs& in, const Expected& expected) {
  const std::string label = std::string(kernels.isa) + (sizeof(S) == 4 ? " f32 " : " f64 ");
  const Run<S> alone(kernels, in, {1, 1}, true, true);
  check_against_reference(in, expected, alone, label + in.label());
  check_splits(kernels, in, alone, label + in.label());
  check_inference(kernels, in, alone, label + in.label());
}

// Every cell and option at one size.
void check_size(int64_t T, int64_t B, int64_t H) {
  for (const CellInfo& cell : kCells) {
    if (cell.projected() && H == 1) continue;  // has no P < H
    for (const Option& option : kOptions) {
      const Inputs in(cell.id, T, B, H, option);
      const Expected expected(in);
      for (const cpu::Kernels* kernels : present()) {
        check_kernels<float>(*kernels, in, expected);
        check_kernels<double>(*kernels, in, expected);
      }
    }
  }
}

// `values` through the gates of an LSTM with W_hh = 0: sigmoid in plane 0, tanh in plane 2; through
// an RNN: tanh.
template <class S>
Numbers activated(const cpu::Kernels& kernels, CellId cell, int plane, const Numbers& values) {
  constexpr int64_t H = 37;  // whole vectors and a rest
  const int64_t B = (static_cast<int64_t>(values.size()) + H - 1) / H;
  Inputs in(cell, 1, B, H, kOptions[0]);
  const int64_t G = in.p.info().gates;
  // what the product adds is -0, so that a sign of `values` stays
  std::fill(in.w_hh.begin(), in.w_hh.end(), 0);
  std::fill(in.b_hh.begin(), in.b_hh.end(), -0.0);
  std::fill(in.h0.begin(), in.h0.end(), -1);
  for (size_t k = 0; k < values.size(); ++k) in.gx[k / H * G * H + plane * H + k % H] = values[k];
  const Run<S> run(kernels, in, {1, 1}, true, true);
  const Numbers saved = saved_of(in, run);
  Numbers out(values.size());
  for (size_t k = 0; k < out.size(); ++k) out[k] = saved[k / H * G * H + plane * H + k % H];
  return out;
}

template <class S>
Numbers arguments() {
  Numbers values = {0.0, -0.0, kInf, -kInf, kNaN, 1e4, -1e4, 1e30, -1e30};
  for (const double x : {double(std::numeric_limits<S>::denorm_min()), 0.625, 9.01, 18.7, 19.1}) {
    values.insert(values.end(), {x, -x});
  }
  for (double x = std::numeric_limits<S>::min() / 8; x < 1e3; x *= 1.37) {
    values.insert(values.end(), {x, -x});
  }
  for (double x = -110; x < 110; x += 0.0043) values.push_back(x);
  for (double& x : values) x = static_cast<S>(x);
  return values;
}

// Within `ulps` units in the last place of S, subnormal results within the smallest normal number.
template <class S, class F>
void check_ulps(const Numbers& found, const Numbers& x, F&& f, double ulps,
                const std::string& name) {
  constexpr double kSmallest = std::numeric_limits<S>::min();
  for (size_t k = 0; k < x.size(); ++k) {
    const double expected = static_cast<double>(f(static_cast<long double>(x[k])));
    const S size = static_cast<S>(std::fabs(expected));
    const double ulp = std::nextafter(size, S(2)) - size;
    const bool saturated = std::fabs(x[k]) >= 1e4;
    const double allowed = saturated ? 0 : size < kSmallest ? kSmallest : ulps * ulp;
    const bool close =
        std::isnan(x[k]) ? std::isnan(found[k]) : std::fabs(found[k] - expected) <= allowed;
    if (close) continue;
    CHECK_IN(close, name + "(" + check::show(x[k]) + ") = " + check::show(found[k]) + " against " +
                        check::show(expected));
  }
}

template <class S>
void check_activations(const cpu::Kernels& kernels) {
  const std::string label = std::string(kernels.isa) + (sizeof(S) == 4 ? " f32 " : " f64 ");
  const Numbers x = arguments<S>();
  const auto tanh = [](long double v) { return std::tanh(v); };
  const auto sigmoid = [](long double v) { return 1 / (1 + std::exp(-v)); };
  const Numbers tanhs = activated<S>(kernels, CellId::kRnnTanh, 0, x);
  check_ulps<S>(tanhs, x, tanh, 2, label + "tanh");
  for (size_t k = 0; k < x.size(); ++k) {
    const bool same_sign = std::isnan(x[k]) || std::signbit(tanhs[k]) == std::signbit(x[k]);
    if (!same_sign) CHECK_IN(same_sign, label + "tanh's sign at " + check::show(x[k]));
  }
  check_ulps<S>(activated<S>(kernels, CellId::kLstm, 2, x), x, tanh, 2, label + "lstm's tanh");
  check_ulps<S>(activated<S>(kernels, CellId::kLstm, 0, x), x, sigmoid, 3, label + "sigmoid");
}

}  // namespace

TEST(one_unit) { check_size(5, 1, 1); }
TEST(one_step) { check_size(1, 5, 33); }
TEST(one_sequence) { check_size(5, 1, 33); }
TEST(less_than_a_vector) { check_size(5, 5, 5); }
TEST(a_rest_of_rows) { check_size(5, 13, 33); }
TEST(more_than_a_panel) { check_size(5, 5, 70); }
TEST(no_step) { check_size(0, 2, 5); }

TEST(parts_meet_at_every_step_of_a_long_scan) {
  for (const CellInfo& cell : kCells) {
    const Inputs in(cell.id, 200, 3, 70, kOptions[5]);
    for (const cpu::Kernels* kernels : present()) {
      const Run<float> alone(*kernels, in, {1, 1}, true, true);
      check_splits(*kernels, in, alone, std::string(kernels->isa) + " " + in.label());
    }
  }
}

TEST(a_reset_hides_even_a_nan) {
  for (const CellInfo& cell : kCells) {
    Inputs in(cell.id, 2, 3, 5, kOptions[3]);
    in.resets = {1, 1, 1, 0, 1, 0};
    for (Numbers* state : {&in.h0, &in.c0}) std::fill(state->begin(), state->end(), kNaN);
    for (const cpu::Kernels* kernels : present()) {
      const Run<double> run(*kernels, in, {1, 1}, true, true);
      for (int64_t k = 0; k < run.h_last.size(); ++k) {
        CHECK_IN(std::isfinite(run.h_last[k]) && run.dh0[k] == 0, in.label());
      }
      for (int64_t k = 0; k < run.dgx.size(); ++k) CHECK_IN(std::isfinite(run.dgx[k]), in.label());
    }
  }
}

TEST(activations_are_exact_to_the_last_places) {
  for (const cpu::Kernels* kernels : present()) {
    check_activations<float>(*kernels);
    check_activations<double>(*kernels);
  }
}

TEST(the_chosen_kernels_are_among_those_present) {
  const auto found = present();
  const std::string chosen = cpu::kernels().isa;  // with or without dot products
  CHECK(std::any_of(found.begin(), found.end(),
                    [&](const cpu::Kernels* kernels) { return chosen == kernels->isa; }));
}
