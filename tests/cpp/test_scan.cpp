// The reference scan: the whole backward through time against finite differences, and what lengths,
// resets and reverse mean, each by a scan without them.
#include "check.h"
#include "random.h"
#include "reference.h"

namespace {

using namespace rnnfast;
using Numbers = std::vector<double>;

constexpr double kPoison = std::numeric_limits<double>::quiet_NaN();

// A scan with its tensors. Outputs start as NaN, so that an element nobody writes shows.
struct Scan {
  Problem p;
  bool bias = true;
  Numbers gx, h0, c0, w_hh, b_hh, w_hr;
  std::vector<int64_t> lengths;  // empty: none
  std::vector<char> resets;      // empty: none
  Numbers y, c, h_last, c_last, saved;
  Numbers dy, dc, dh_last, dc_last;
  Numbers dgx, dh0, dc0, dw_hh, db_hh, dw_hr;

  Scan(CellId cell, int64_t T, int64_t B, uint32_t seed) {
    p.cell = cell;
    p.training = true;
    p.T = T, p.B = B, p.H = 3, p.P = cell_info(cell).projected() ? 2 : 3;
    CHECK(p.validate().empty());
    Random random(seed);
    const int64_t c_width = p.has_cell_state() ? p.H : 0, hr = p.info().projected() ? p.P * p.H : 0;
    gx = random.vector(p.gate_elements(), 2);
    h0 = random.vector(B * p.P, 1);
    c0 = random.vector(B * c_width, 1);
    w_hh = random.vector(p.gate_width() * p.P, 1);
    b_hh = random.vector(p.gate_width(), 1);
    w_hr = random.vector(hr, 1);
    dy = random.vector(p.output_elements(), 1);
    dc = random.vector(T * B * c_width, 1);
    dh_last = random.vector(B * p.P, 1);
    dc_last = random.vector(B * c_width, 1);
  }

  reference::Masks masks() const {
    return {lengths.empty() ? nullptr : lengths.data(),
            resets.empty() ? nullptr : reinterpret_cast<const bool*>(resets.data())};
  }

  reference::Weights<double> weights() const {
    return {w_hh.data(), bias ? b_hh.data() : nullptr, w_hr.data()};
  }

  Scan& forward() {
    y.assign(p.output_elements(), kPoison);
    c.assign(p.cell_state_elements(), kPoison);
    h_last.assign(h0.size(), kPoison);
    c_last.assign(c0.size(), kPoison);
    saved.assign(p.saved_elements(), kPoison);
    const reference::Forward<double> io{gx.data(), h0.data(),     c0.data(),     y.data(),
                                        c.data(),  h_last.data(), c_last.data(), saved.data()};
    dispatch(p.cell, [&](auto tag) {
      reference::scan_forward<decltype(tag)::template Cell>(p, weights(), masks(), io);
    });
    return *this;
  }

  Scan& backward() {
    dgx.assign(gx.size(), kPoison);
    dh0.assign(h0.size(), kPoison);
    dc0.assign(c0.size(), kPoison);
    dw_hh.assign(w_hh.size(), kPoison);
    db_hh.assign(b_hh.size(), kPoison);
    dw_hr.assign(w_hr.size(), kPoison);
    reference::Backward<double> io;
    io.h0 = h0.data(), io.c0 = c0.data(), io.y = y.data(), io.c = c.data(), io.saved = saved.data();
    io.dy = dy.data(), io.dc = dc.empty() ? nullptr : dc.data();
    io.dh_last = dh_last.data(), io.dc_last = dc_last.data();
    io.dgx = dgx.data(), io.dh0 = dh0.data(), io.dc0 = dc0.data();
    io.dw_hh = dw_hh.data(), io.db_hh = bias ? db_hh.data() : nullptr, io.dw_hr = dw_hr.data();
    dispatch(p.cell, [&](auto tag) {
      reference::scan_backward<decltype(tag)::template Cell>(p, weights(), masks(), io);
    });
    return *this;
  }

  double loss() {
    forward();
    return dot(dy, y) + dot(dc, c) + dot(dh_last, h_last) + dot(dc_last, c_last);
  }

  static double dot(const Numbers& a, const Numbers& b) {
    double sum = 0;
    for (size_t k = 0; k < a.size(); ++k) sum += a[k] * b[k];
    return sum;
  }
};

void check_same(const Numbers& a, const Numbers& b, const std::string& context) {
  CHECK_IN(a.size() == b.size(), context);
  for (size_t k = 0; k < a.size() && k < b.size(); ++k) CHECK_NEAR_IN(a[k], b[k], 1e-14, context);
}

void check_zero(const Numbers& a, const std::string& context) {
  for (const double value : a) CHECK_IN(value == 0, context);
}

// What `scan` gives at steps [from, to) of sequence b, in [T, B, width].
Numbers steps(const Scan& scan, const Numbers& values, int64_t from, int64_t to, int64_t b) {
  const int64_t width = static_cast<int64_t>(values.size()) / (scan.p.T * scan.p.B);
  Numbers out;
  for (int64_t t = from; t < to; ++t) {
    const auto row = values.begin() + (t * scan.p.B + b) * width;
    out.insert(out.end(), row, row + width);
  }
  return out;
}

// A scan over steps [from, to) of sequence b of `scan` alone, from the state (h, c), no masks.
Scan part(const Scan& scan, int64_t from, int64_t to, int64_t b, Numbers h, Numbers c) {
  Scan out(scan.p.cell, to - from, 1, 0);
  out.p.reverse = scan.p.reverse;
  out.w_hh = scan.w_hh, out.b_hh = scan.b_hh, out.w_hr = scan.w_hr;
  out.gx = steps(scan, scan.gx, from, to, b);
  out.h0 = std::move(h), out.c0 = std::move(c);
  out.forward();
  return out;
}

Numbers row(const Numbers& values, int64_t B, int64_t b) {
  const int64_t width = static_cast<int64_t>(values.size()) / B;
  return Numbers(values.begin() + b * width, values.begin() + (b + 1) * width);
}

std::string label(const Problem& p) {
  return std::string(p.info().name) + (p.reverse ? " reverse" : "");
}

// f(scan) for every cell and both directions.
template <class F>
void for_each_scan(int64_t T, int64_t B, F&& f) {
  for (const CellInfo& cell : kCells) {
    for (const bool reverse : {false, true}) {
      Scan scan(cell.id, T, B, 7);
      scan.p.reverse = reverse;
      f(scan);
    }
  }
}

void check_gradient(Scan& scan, Numbers& values, const Numbers& gradient, const std::string& what) {
  for (size_t k = 0; k < values.size(); ++k) {
    const double slope = finite_difference(values[k], [&] { return scan.loss(); });
    CHECK_NEAR_IN(gradient[k], slope, 1e-8, label(scan.p) + " " + what);
  }
}

void check_gradients(Scan& scan) {
  scan.forward().backward();
  check_gradient(scan, scan.gx, Numbers(scan.dgx), "gx");
  check_gradient(scan, scan.h0, Numbers(scan.dh0), "h0");
  check_gradient(scan, scan.c0, Numbers(scan.dc0), "c0");
  check_gradient(scan, scan.w_hh, Numbers(scan.dw_hh), "w_hh");
  if (scan.bias) check_gradient(scan, scan.b_hh, Numbers(scan.db_hh), "b_hh");
  check_gradient(scan, scan.w_hr, Numbers(scan.dw_hr), "w_hr");
}

}  // namespace

TEST(gradients_agree_with_finite_differences) {
  for_each_scan(5, 2, [](Scan& scan) { check_gradients(scan); });
}

TEST(gradients_without_bias) {
  for_each_scan(3, 2, [](Scan& scan) {
    scan.bias = false;
    check_gradients(scan);
  });
}

TEST(gradients_with_lengths) {
  for_each_scan(4, 4, [](Scan& scan) {
    scan.lengths = {2, 4, 0, 1};
    check_gradients(scan);
  });
}

TEST(gradients_with_resets) {
  for_each_scan(4, 3, [](Scan& scan) {
    scan.resets = {1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1};
    check_gradients(scan);
  });
}

TEST(gradients_with_lengths_and_resets) {
  for_each_scan(4, 3, [](Scan& scan) {
    scan.lengths = {3, 4, 2};
    scan.resets = {1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1};
    check_gradients(scan);
  });
}

TEST(past_its_length_a_sequence_is_silent_and_frozen) {
  for_each_scan(5, 3, [](Scan& scan) {
    scan.lengths = {2, 5, 0};
    scan.forward();
    for (int64_t b = 0; b < 3; ++b) {
      const int64_t length = scan.lengths[b];
      const Scan alone = part(scan, 0, length, b, row(scan.h0, 3, b), row(scan.c0, 3, b));
      check_same(steps(scan, scan.y, 0, length, b), alone.y, label(scan.p) + " y");
      check_same(row(scan.h_last, 3, b), alone.h_last, label(scan.p) + " h_last");
      check_same(row(scan.c_last, 3, b), alone.c_last, label(scan.p) + " c_last");
      check_zero(steps(scan, scan.y, length, 5, b), label(scan.p) + " y past the end");
      check_zero(steps(scan, scan.c, length, 5, b), label(scan.p) + " c past the end");
    }
    scan.backward();
    check_zero(steps(scan, scan.dgx, 2, 5, 0), label(scan.p) + " dgx past the end");
    check_same(row(scan.dh0, 3, 2), row(scan.dh_last, 3, 2),
               label(scan.p) + " dh0 of an empty sequence");
  });
}

TEST(a_reset_starts_anew_and_stops_gradients) {
  for_each_scan(6, 1, [](Scan& scan) {
    const int64_t at = 3;  // the first step, in time, that a forward scan takes after the reset
    scan.resets.assign(6, 0);
    scan.resets[scan.p.reverse ? at - 1 : at] = 1;
    scan.forward();
    const Numbers zero_h(scan.h0.size()), zero_c(scan.c0.size());
    const bool reverse = scan.p.reverse;
    const Scan before = part(scan, reverse ? at : 0, reverse ? 6 : at, 0, scan.h0, scan.c0);
    const Scan after = part(scan, reverse ? 0 : at, reverse ? at : 6, 0, zero_h, zero_c);
    check_same(steps(scan, scan.y, reverse ? at : 0, reverse ? 6 : at, 0), before.y,
               label(scan.p) + " before");
    check_same(steps(scan, scan.y, reverse ? 0 : at, reverse ? at : 6, 0), after.y,
               label(scan.p) + " after");
    check_same(scan.h_last, after.h_last, label(scan.p) + " h_last");

    // A gradient that comes in only after the reset does not come out before it.
    std::fill(scan.dy.begin(), scan.dy.end(), 0);
    std::fill(scan.dc.begin(), scan.dc.end(), 0);
    scan.backward();
    check_zero(scan.dh0, label(scan.p) + " dh0");
    check_zero(scan.dc0, label(scan.p) + " dc0");
    check_zero(steps(scan, scan.dgx, reverse ? at : 0, reverse ? 6 : at, 0),
               label(scan.p) + " dgx");
  });
}

TEST(reverse_is_forward_on_the_flipped_sequence) {
  for_each_scan(5, 1, [](Scan& scan) {
    Scan flipped = scan;
    const int64_t width = scan.p.gate_width();
    for (int64_t t = 0; t < 5; ++t) {
      std::copy_n(scan.gx.begin() + t * width, width, flipped.gx.begin() + (4 - t) * width);
    }
    flipped.p.reverse = !scan.p.reverse;
    scan.forward();
    flipped.forward();
    check_same(scan.h_last, flipped.h_last, label(scan.p) + " h_last");
    check_same(steps(scan, scan.y, 0, 1, 0), steps(flipped, flipped.y, 4, 5, 0),
               label(scan.p) + " y");
  });
}

TEST(nothing_to_do_is_done) {
  for_each_scan(0, 2, [](Scan& scan) {
    scan.forward().backward();
    check_same(scan.h_last, scan.h0, label(scan.p));
    check_same(scan.dh0, scan.dh_last, label(scan.p));
    check_zero(scan.dw_hh, label(scan.p));
  });
  for_each_scan(3, 0, [](Scan& scan) {
    scan.forward().backward();
    check_zero(scan.dw_hh, label(scan.p));
  });
}
