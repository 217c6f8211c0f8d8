// The gradients of a scan's weights, from what its backward left, against the reference's: odd sizes,
// wherever the steps of x lie, long sums that are cut into chunks, sums for each part of the batch,
// and any number of threads with the same bits.
#include "cpu/weight_sums.h"
#include "cpu_scan.h"

namespace {

using namespace cpu_scan;

struct Sizes {
  int64_t T, B, I, H;
};

// x [T, B, I], whose steps or whose sequences come first; NaN past a sequence's end.
struct Input {
  int64_t I;
  bool batch_first;
  Numbers x;

  Input(const Inputs& in, int64_t width, bool by_batch, Random& random)
      : I(width), batch_first(by_batch), x(random.vector(in.p.T * in.p.B * width, 1)) {
    for (double& value : x) value = static_cast<float>(value);
    for (int64_t t = 0; t < in.p.T; ++t) {
      for (int64_t b = 0; b < in.p.B; ++b) {
        if (in.alive(t * in.p.B + b)) continue;
        for (int64_t i = 0; i < I; ++i) x[at(in, t, b) + i] = kNaN;
      }
    }
  }
  int64_t step(const Inputs& in) const { return batch_first ? I : in.p.B * I; }
  int64_t row(const Inputs& in) const { return batch_first ? in.p.T * I : I; }
  int64_t at(const Inputs& in, int64_t t, int64_t b) const { return t * step(in) + b * row(in); }
};

template <class S>
struct Found {
  Buffer<S> w_ih, w_hh, w_hr, b_ih, b_hh;
  std::vector<const Buffer<S>*> all() const { return {&w_ih, &w_hh, &w_hr, &b_ih, &b_hh}; }
};

template <class S>
Found<S> add_up(const cpu::Kernels& kernels, const Inputs& in, const Input& m, Run<S>& run,
                int threads, int64_t groups = 0) {
  const Problem& p = in.p;
  const int64_t GH = p.gate_width(), each = groups > 0 ? groups : 1;
  const CellInfo& cell = p.info();
  Found<S> found{Buffer<S>(each * GH * m.I), Buffer<S>(each * GH * p.P),
                 Buffer<S>(cell.projected() ? each * p.P * p.H : 0), Buffer<S>(each * GH),
                 Buffer<S>(each * GH)};
  Buffer<S> x(m.x), h0(in.h0);
  cpu::WeightGradients<S> w;
  w.I = m.I, w.x_step = m.step(in), w.x_row = m.row(in);
  w.x = x.data(), w.y = run.y.data(), w.extra = run.extra.data(), w.h0 = h0.data();
  w.dgx = run.dgx.data(), w.dgh_own = run.dgh_own.data(), w.dh_total = run.dh_total.data();
  w.dw_ih = found.w_ih.data(), w.dw_hh = found.w_hh.data(), w.dw_hr = found.w_hr.data();
  w.db_ih = found.b_ih.data(), w.db_hh = found.b_hh.data();
  cpu::Sums<S> sums;
  sums.T = p.T, sums.B = p.B, sums.groups = groups;
  sums.reverse = p.reverse, sums.threads = threads;
  sums.lengths = in.masks().lengths, sums.resets = in.masks().resets;
  cpu::WeightSums<S>(cell, p.H, p.P, w, sums);
  if constexpr (std::is_same_v<S, float>) {
    Workspace room(kernels.sums_room_f32(sums));
    sums.workspace = room.data();
    kernels.sums_f32(sums);
    CHECK_IN(room.intact(), in.label());
  } else {
    Workspace room(kernels.sums_room_f64(sums));
    sums.workspace = room.data();
    kernels.sums_f64(sums);
    CHECK_IN(room.intact(), in.label());
  }
  for (const Buffer<S>* output : found.all()) CHECK_IN(output->intact(), in.label());
  return found;
}

// Of w_ih and b_ih, which the reference does not know; of the sequences [first, end).
struct OfInput {
  Numbers w_ih, b_ih;

  OfInput(const Inputs& in, const Input& m, const Numbers& dgx) : OfInput(in, m, dgx, 0, in.p.B) {}
  OfInput(const Inputs& in, const Input& m, const Numbers& dgx, int64_t first, int64_t end)
      : w_ih(in.p.gate_width() * m.I), b_ih(in.p.gate_width()) {
    const int64_t GH = in.p.gate_width();
    for (int64_t k = 0; k < in.p.T * in.p.B; ++k) {
      if (!in.alive(k) || k % in.p.B < first || k % in.p.B >= end) continue;
      const double* x = m.x.data() + m.at(in, k / in.p.B, k % in.p.B);
      for (int64_t o = 0; o < GH; ++o) {
        const double d = dgx[k * GH + o];
        b_ih[o] += d;
        for (int64_t i = 0; i < m.I; ++i) w_ih[o * m.I + i] += d * x[i];
      }
    }
  }
};

template <class S>
void check_near(const Buffer<S>& found, const Numbers& expected, double tolerance,
                const std::string& label) {
  double largest = 1;
  for (const double e : expected) largest = std::max(largest, std::fabs(e));
  for (int64_t k = 0; k < found.size(); ++k) {
    CHECK_IN(std::fabs(found[k] - expected[k]) <= tolerance * largest, label);
  }
}

template <class S>
void check_sums(const Inputs& in, const Input& m) {
  const double tolerance = std::is_same_v<S, float> ? 2e-5 : 1e-12;
  const Expected e(in);
  const OfInput of_input(in, m, e.dgx);
  for (const cpu::Kernels* kernels : present()) {
    const std::string label = in.label() + " I" + std::to_string(m.I) + " " + kernels->isa;
    Run<S> run(*kernels, in, {1, 1}, true, true);
    const Found<S> found = add_up<S>(*kernels, in, m, run, 1);
    check_near(found.w_ih, of_input.w_ih, tolerance, label + " dw_ih");
    check_near(found.b_ih, of_input.b_ih, tolerance, label + " db_ih");
    check_near(found.w_hh, e.dw_hh, tolerance, label + " dw_hh");
    check_near(found.b_hh, e.db_hh, tolerance, label + " db_hh");
    check_near(found.w_hr, e.dw_hr, tolerance, label + " dw_hr");
    for (const int threads : {2, 3, 7}) {
      const Found<S> other = add_up<S>(*kernels, in, m, run, threads);
      for (size_t k = 0; k < found.all().size(); ++k) {
        CHECK_IN(
            other.all()[k]->same_bits(*found.all()[k]),
            label + " on " + std::to_string(threads) + " threads, output " + std::to_string(k));
      }
    }
  }
}

// The sums of groups: of the input's weights each, of all weights their total.
template <class S>
void check_groups(const Inputs& in, const Input& m, int64_t groups) {
  const double tolerance = std::is_same_v<S, float> ? 2e-5 : 1e-12;
  const Expected e(in);
  const int64_t size = in.p.B / groups;
  for (const cpu::Kernels* kernels : present()) {
    const std::string label = in.label() + " groups" + std::to_string(groups) + " " + kernels->isa;
    Run<S> run(*kernels, in, {1, 1}, true, true);
    const Found<S> whole = add_up<S>(*kernels, in, m, run, 1);
    const Found<S> found = add_up<S>(*kernels, in, m, run, 1, groups);
    for (int64_t g = 0; g < groups; ++g) {
      const OfInput expected(in, m, e.dgx, g * size, (g + 1) * size);
      const auto near = [&](const Buffer<S>& of, const Numbers& numbers) {
        const int64_t n = static_cast<int64_t>(numbers.size());
        for (int64_t k = 0; k < n; ++k)
          CHECK_IN(std::fabs(of[g * n + k] - numbers[k]) <= tolerance * 100, label);
      };
      near(found.w_ih, expected.w_ih);
      near(found.b_ih, expected.b_ih);
    }
    for (size_t o = 0; o < whole.all().size(); ++o) {
      const Buffer<S>& all = *whole.all()[o];
      Numbers total(all.size());
      for (int64_t k = 0; k < groups * all.size(); ++k)
        total[k % all.size()] += (*found.all()[o])[k];
      check_near(all, total, tolerance, label + " output " + std::to_string(o));
    }
    for (const int threads : {2, 3, 7}) {
      const Found<S> other = add_up<S>(*kernels, in, m, run, threads, groups);
      for (size_t k = 0; k < found.all().size(); ++k)
        CHECK_IN(other.all()[k]->same_bits(*found.all()[k]), label);
    }
  }
}

}  // namespace

TEST(the_gradients_of_weights_are_added_up) {
  Random random(11);
  int turn = 0;
  for (const CellInfo& cell : kCells) {
    for (const Option& option : kOptions) {
      for (const auto& [T, B, I, H] :
           {Sizes{1, 1, 1, 1}, Sizes{5, 7, 3, 17}, Sizes{9, 3, 60, 26}}) {
        const Inputs in(cell.id, T, B, H, option);
        check_sums<float>(in, Input(in, I, turn % 2 == 1, random));
        check_sums<double>(in, Input(in, I, turn++ % 2 == 1, random));
      }
    }
  }
}

TEST(long_sums_of_gradients_are_added_up) {
  Random random(12);
  for (const CellId cell : {CellId::kLstm, CellId::kGru, CellId::kGruResetBefore}) {
    const Inputs in(cell, 50, 101, 9, kOptions[5]);  // 5,050 steps: three chunks
    check_sums<float>(in, Input(in, 5, false, random));
    check_sums<double>(in, Input(in, 5, true, random));
  }
}

TEST(groups_have_sums_of_their_own) {
  Random random(15);
  for (const CellInfo& cell : kCells) {
    for (const Option& option : kOptions) {
      const Inputs in(cell.id, 5, 6, 9, option);
      for (const int64_t groups : {1, 2, 3, 6}) {
        check_groups<float>(in, Input(in, 3, groups == 2, random), groups);
        check_groups<double>(in, Input(in, 3, groups == 3, random), groups);
      }
    }
  }
}

TEST(the_sums_of_nothing_are_zero) {
  Random random(14);
  for (const CellInfo& cell : kCells) {
    const Inputs in(cell.id, 3, 0, 5, kOptions[0]);
    check_sums<float>(in, Input(in, 4, false, random));
  }
}

// Wider than a block of strips, and more rows than one of rows; no chunks.
TEST(wide_sums_of_gradients_are_added_up) {
  Random random(13);
  const Inputs in(CellId::kGru, 3, 100, 68, kOptions[0]);
  check_sums<float>(in, Input(in, 1990, false, random));
}
