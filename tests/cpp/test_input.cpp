// A scan that makes the input's part of the gates itself, against one that is given it, and one that
// makes the gradient of the input, against the product of what it leaves: the same bits, however many
// sequences a thread has and wherever the steps of x lie.
#include "cpu_scan.h"
#include "narrow_scan.h"

namespace {

using namespace cpu_scan;

struct Sizes {
  int64_t T, B, I, H;
};

// What is multiplied: x [T, B, I] as a user's, whose steps or whose sequences come first.
struct Multiplied {
  Sizes s;
  Numbers x, w_ih, b_ih;
  bool batch_first;

  Multiplied(const Inputs& in, int64_t I, bool by_batch, Random& random)
      : s{in.p.T, in.p.B, I, in.p.H}, batch_first(by_batch) {
    x = random.vector(s.T * s.B * I, 1);
    w_ih = random.vector(in.p.gate_width() * I, 0.3);
    if (in.option.bias) b_ih = random.vector(in.p.gate_width(), 1);
  }
  int64_t step() const { return batch_first ? s.I : s.B * s.I; }
  int64_t row() const { return batch_first ? s.T * s.I : s.I; }
};

template <class S>
struct Found {
  Buffer<S> gates, extra, y, c, h_last, c_last;
  std::vector<int16_t> fixed;

  std::vector<const Buffer<S>*> outputs() const { return {&extra, &y, &c, &h_last, &c_last}; }
};

// The large product: x·W_ihᵀ + b_ih.
template <class S>
Buffer<S> product(const cpu::Kernels& kernels, const Multiplied& m, int64_t columns) {
  const auto& [T, B, I, H] = m.s;
  Buffer<S> x(m.x), w(m.w_ih), b(m.b_ih), c(T * B * columns);
  for (int64_t t = 0; t < T; ++t) {
    cpu::Gemm<S> g;
    g.M = B, g.N = columns, g.K = I;
    g.a = x.data() + t * m.step(), g.a_row = m.row(), g.a_column = 1;
    g.b = w.data(), g.b_row = 1, g.b_column = I;
    g.c = c.data() + t * B * columns, g.c_row = columns;
    g.row = b.data();
    Workspace room(kernels.gemm_room(sizeof(S)));
    g.workspace = room.data();
    if constexpr (std::is_same_v<S, float>) {
      kernels.gemm_f32(g);
    } else {
      kernels.gemm_f64(g);
    }
  }
  return c;
}

enum class Keep { kNothing, kGates, kFixed };

template <class S>
Found<S> run(const cpu::Kernels& kernels, const Inputs& in, const Multiplied& m, Keep keep,
             int threads, bool itself) {
  const Problem& p = in.p;
  const bool training = keep != Keep::kNothing, two = p.has_cell_state();
  const bool gates = !itself || (keep == Keep::kGates && !p.info().saves_output);
  Found<S> found;
  if (gates && !itself) found.gates = product<S>(kernels, m, p.gate_width());
  if (gates && itself) found.gates = Buffer<S>(p.T * p.B * p.gate_width());
  if (keep == Keep::kFixed) found.fixed.assign(p.T * p.B * p.gate_width(), -77);
  if (p.info().has_extra()) found.extra = Buffer<S>((training ? p.T : 1) * p.B * p.H);
  found.y = Buffer<S>(p.T * p.B * p.P), found.h_last = Buffer<S>(p.B * p.P);
  if (two) found.c_last = Buffer<S>(p.B * p.H);
  if (two && training) found.c = Buffer<S>(p.T * p.B * p.H);

  Buffer<S> w_hh(in.w_hh), b_hh(in.b_hh), w_hr(in.w_hr), h0(in.h0), c0(in.c0);
  Buffer<S> x(m.x), w_ih(m.w_ih), b_ih(m.b_ih);
  cpu::Forward<S> f;
  f.T = p.T, f.B = p.B, f.H = p.H, f.P = p.P, f.reverse = p.reverse, f.training = training;
  f.split = {threads, 1};
  f.w_hh = w_hh.data(), f.b_hh = b_hh.data(), f.w_hr = w_hr.data();
  f.lengths = in.masks().lengths, f.resets = in.masks().resets;
  f.h0 = h0.data(), f.c0 = c0.data();
  f.gates = found.gates.data(), f.fixed = found.fixed.empty() ? nullptr : found.fixed.data();
  f.extra = found.extra.data(), f.y = found.y.data(), f.c = found.c.data();
  f.h_last = found.h_last.data(), f.c_last = found.c_last.data();
  int64_t bytes = kernels.workspace(p.cell, p.B, p.H, p.P, sizeof(S), f.split);
  if (itself) {
    f.x = x.data(), f.w_ih = w_ih.data(), f.b_ih = b_ih.data();
    f.I = m.s.I, f.x_step = m.step(), f.x_row = m.row();
    bytes += kernels.input_room(p.gate_width(), p.B, m.s.I, sizeof(S), f.split);
  }
  Workspace workspace(bytes);
  f.workspace = workspace.data();
  if constexpr (std::is_same_v<S, float>) {
    kernels.forward_f32(p.cell, f);
  } else {
    kernels.forward_f64(p.cell, f);
  }
  CHECK_IN(workspace.intact() && found.gates.intact(), in.label());
  for (const Buffer<S>* output : found.outputs()) CHECK_IN(output->intact(), in.label());
  return found;
}

template <class S>
void check(const Inputs& in, const Multiplied& m, Keep keep, int threads) {
  for (const cpu::Kernels* kernels : present()) {
    const Found<S> given = run<S>(*kernels, in, m, keep, threads, false);
    const Found<S> made = run<S>(*kernels, in, m, keep, threads, true);
    const std::string label = in.label() + " I" + std::to_string(m.s.I) + " " + kernels->isa +
                              " threads " + std::to_string(threads) + " keep " +
                              std::to_string(int(keep));
    for (size_t k = 0; k < given.outputs().size(); ++k)
      CHECK_IN(made.outputs()[k]->same_bits(*given.outputs()[k]), label);
    CHECK_IN(made.fixed == given.fixed, label);
    if (keep == Keep::kGates && !in.p.info().saves_output)
      CHECK_IN(made.gates.same_bits(given.gates), label);
  }
}

template <class S>
void check_all(CellId cell, const Sizes& s, Random& random) {
  int turn = 0;
  for (const Option& option : kOptions) {
    const Inputs in(cell, s.T, s.B, s.H, option);
    const Multiplied m(in, s.I, turn++ % 2 == 1, random);
    for (const int threads : {1, 3}) {
      check<S>(in, m, Keep::kNothing, threads);
      check<S>(in, m, Keep::kGates, threads);
      if (std::is_same_v<S, float> && in.p.info().bounded_gates)
        check<S>(in, m, Keep::kFixed, threads);
    }
  }
}

template <class S>
void check_gradient(CellId cell, const Sizes& s, Random& random) {
  for (const Option& option : kOptions) {
    const Inputs in(cell, s.T, s.B, s.H, option);
    const int64_t rows = s.T * s.B, columns = in.p.gate_width();
    const Numbers w_ih = random.vector(columns * s.I, 0.3);
    for (const cpu::Kernels* k : present()) {
      for (const int threads : {1, 3}) {
        const cpu::Split split{threads, 1};
        const Run<S> without(*k, in, split, true, true);
        Run<S> with(*k, in, split, true, true, false, w_ih);
        const std::string label = in.label() + " I" + std::to_string(s.I) + " " + k->isa +
                                  " threads " + std::to_string(threads);
        CHECK_IN(with.dgx.same_bits(without.dgx) && with.dh0.same_bits(without.dh0), label);
        Buffer<S> w(w_ih);
        const auto product = [&] {
          if constexpr (std::is_same_v<S, float>) {
            return k->gemm_f32;
          } else {
            return k->gemm_f64;
          }
        }();
        CHECK_IN(narrow_scan::numbers_of(with.dx) ==
                     narrow_scan::large_product(*k, product, with.dgx.data(), w.data(), rows,
                                                columns, s.I),
                 label);
      }
    }
  }
}

}  // namespace

TEST(the_gradient_of_the_input_is_made_by_the_scan) {
  Random random(6);
  for (const CellInfo& cell : kCells) {
    for (const Sizes& s : {Sizes{5, 7, 3, 17}, Sizes{9, 20, 50, 8}, Sizes{3, 90, 33, 70}})
      check_gradient<float>(cell.id, s, random);
    check_gradient<double>(cell.id, Sizes{6, 13, 21, 11}, random);
  }
}

TEST(the_input_is_multiplied_by_the_scan) {
  Random random(5);
  for (const CellInfo& cell : kCells) {
    for (const Sizes& s : {Sizes{5, 7, 3, 17}, Sizes{9, 20, 300, 8}, Sizes{3, 90, 33, 5}}) {
      check_all<float>(cell.id, s, random);
    }
    check_all<double>(cell.id, Sizes{6, 13, 21, 11}, random);
  }
}
