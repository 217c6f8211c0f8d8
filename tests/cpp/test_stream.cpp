// Steps with packed weights held against the kernels of whole sequences, after our own product of
// the input: the same bits on every instruction set, in steps and blocks, on any number of threads.
#include "cpu/stream/kernels.h"
#include "cpu_scan.h"

namespace {

using namespace cpu_scan;
namespace stream = cpu::stream;
using stream::Storage;

struct Sizes {
  int64_t T, B, I, H, P;
};

struct Set {
  const cpu::Kernels* whole;
  const stream::Kernels* steps;
};

std::vector<Set> sets() {
  std::vector<Set> found;
  for (const cpu::Kernels* whole : present()) {
    const std::string isa = whole->isa;
    const stream::Kernels* steps = &stream::kernels_baseline;
#if defined(__x86_64__)
    if (isa == "avx2") steps = &stream::kernels_avx2;
    if (isa == "avx512") steps = &stream::kernels_avx512;
#endif
    found.push_back({whole, steps});
  }
  return found;
}

// Bytes on a cache line of their own, all ones (NaN).
struct Room {
  std::vector<char> bytes;
  explicit Room(int64_t size) : bytes(size + 64, char(-1)) {}
  void* data() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) &
                                   ~uintptr_t(63));
  }
};

template <class S>
struct Result {
  Buffer<S> y, h, c;
  bool same_bits(const Result& other) const {
    return y.same_bits(other.y) && h.same_bits(other.h) && c.same_bits(other.c);
  }
};

// A layer, its input and initial states.
template <class S>
struct Case {
  const CellInfo& cell;
  Sizes s;
  Buffer<S> w_ih, w_hh, b_ih, b_hh, w_hr, x, h0, c0;

  Case(const CellInfo& of, Sizes sizes, Random& random)
      : cell(of),
        s(sizes),
        w_ih(random.vector(of.gates * s.H * s.I, 0.5)),
        w_hh(random.vector(of.gates * s.H * s.P, 0.5)),
        b_ih(random.vector(of.gates * s.H, 0.5)),
        b_hh(random.vector(of.gates * s.H, 0.5)),
        w_hr(random.vector(s.P * s.H, 0.5)),
        x(random.vector(s.T * s.B * s.I, 1)),
        h0(random.vector(s.B * s.P, 1)),
        c0(random.vector(s.B * s.H, 1)) {}

  std::string label(const Set& set) const {
    return std::string(set.whole->isa) + " " + std::string(cell.name) + " T" + std::to_string(s.T) +
           " B" + std::to_string(s.B) + " I" + std::to_string(s.I) + " H" + std::to_string(s.H) +
           (sizeof(S) == 8 ? " double" : " float");
  }

  // By the product of all steps and the kernel of the scan.
  Result<S> whole(const cpu::Kernels& kernels) {
    const int64_t G = cell.gates;
    Buffer<S> gates(s.T * s.B * G * s.H), extra(s.B * s.H);
    Result<S> found{Buffer<S>(s.T * s.B * s.P), Buffer<S>(s.B * s.P), Buffer<S>(s.B * s.H)};
    cpu::Gemm<S> g;
    g.M = s.T * s.B, g.N = G * s.H, g.K = s.I;
    g.a = x.data(), g.a_row = s.I, g.a_column = 1;
    g.b = w_ih.data(), g.b_row = 1, g.b_column = s.I;
    g.c = gates.data(), g.c_row = G * s.H, g.row = b_ih.data();
    Room product(kernels.gemm_room(sizeof(S)));
    g.workspace = product.data();
    cpu::Forward<S> f;
    f.T = s.T, f.B = s.B, f.H = s.H, f.P = s.P;
    f.w_hh = w_hh.data(), f.b_hh = b_hh.data();
    f.w_hr = cell.projected() ? w_hr.data() : nullptr;
    f.h0 = h0.data(), f.c0 = c0.data();
    f.gates = gates.data(), f.extra = extra.data(), f.y = found.y.data();
    f.h_last = found.h.data(), f.c_last = found.c.data();
    Room work(kernels.workspace(cell.id, s.B, s.H, s.P, sizeof(S), f.split));
    f.workspace = work.data();
    if constexpr (std::is_same_v<S, float>) {
      kernels.gemm_f32(g), kernels.forward_f32(cell.id, f);
    } else {
      kernels.gemm_f64(g), kernels.forward_f64(cell.id, f);
    }
    return found;
  }

  // By calls of `block` steps, which take `chunk` at a time.
  Result<S> steps(const stream::Kernels& kernels, Storage storage, int64_t block, int64_t chunk,
                  int threads) {
    stream::Layer<S> layer;
    layer.shape = {cell.id, s.I, s.H, s.P, 0};
    Room packed(kernels.packed(layer.shape, storage));
    Room scratch(kernels.scratch(&layer.shape, 1, storage, s.B, chunk));
    const stream::Weights<S> w{w_ih.data(), w_hh.data(), b_ih.data(), b_hh.data(), w_hr.data()};
    Buffer<S> h[2] = {h0, Buffer<S>(s.B * s.P)}, c = c0, y(s.T * s.B * s.P);
    layer.packed = packed.data();
    layer.h[0] = h[0].data(), layer.h[1] = h[1].data(), layer.c = c.data();
    stream::Run<S> r;
    r.layers = &layer, r.count = 1, r.B = s.B, r.storage = storage, r.chunk = chunk;
    r.threads = threads, r.scratch = scratch.data();
    r.x_step = s.B * s.I, r.x_row = s.I, r.y_step = s.B * s.P, r.y_row = s.P;
    if constexpr (std::is_same_v<S, float>) {
      kernels.pack_f32(layer.shape, storage, w, packed.data());
    } else {
      kernels.pack_f64(layer.shape, storage, w, packed.data());
    }
    for (int64_t t = 0; t < s.T; t += block, r.slot ^= int(r.T & 1)) {
      r.T = std::min(block, s.T - t);
      r.x = x.data() + t * r.x_step, r.y = y.data() + t * r.y_step;
      if constexpr (std::is_same_v<S, float>) {
        kernels.run_f32(r);
      } else {
        kernels.run_f64(r);
      }
    }
    CHECK(y.intact() && h[0].intact() && h[1].intact() && c.intact());
    if (cell.states == 1) c = Buffer<S>(s.B * s.H);
    return {y, h[r.slot], c};
  }

  // The weights as storage of fewer bits has them.
  void round(Storage storage) {
    for (Buffer<S>* w : {&w_ih, &w_hh, &w_hr}) {
      const int64_t K = w == &w_ih ? s.I : w == &w_hh ? s.P : s.H;
      for (int64_t row = 0; row < w->size() / K; ++row) {
        S* values = w->data() + row * K;
        S largest = 0;
        for (int64_t k = 0; k < K; ++k) largest = std::max(largest, std::fabs(values[k]));
        for (int64_t k = 0; k < K; ++k) {
          if (storage == Storage::kInt8) {
            values[k] = std::nearbyint(127 * double(values[k]) / largest) * (largest / 127);
          } else {  // its upper 16 bits, rounded half to even
            const float one = values[k];
            uint32_t bits;
            std::memcpy(&bits, &one, 4);
            bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
            std::memcpy(values + k, &bits, 4);
          }
        }
      }
    }
  }
};

const Sizes kSizes[] = {
    {5, 1, 7, 9, 4}, {4, 2, 1, 1, 1}, {3, 1, 200, 33, 20}, {2, 5, 385, 40, 8}, {6, 3, 64, 64, 64}};

Sizes of_cell(const CellInfo& cell, Sizes s) {
  if (!cell.projected()) s.P = s.H;
  return s;
}

template <class S>
void check(Storage storage) {
  Random random(11);
  for (const CellInfo& cell : kCells) {
    for (const Sizes& sizes : kSizes) {
      Case<S> c(cell, of_cell(cell, sizes), random);
      for (const Set& set : sets()) {
        Result<S> expected = c.whole(*set.whole);
        if (cell.states == 1) expected.c = Buffer<S>(c.s.B * c.s.H);
        for (const auto& [block, chunk] : {std::pair{1, 1}, {2, 8}, {6, 2}, {6, 6}}) {
          for (const int threads : {1, 3}) {
            const Result<S> found = c.steps(*set.steps, storage, block, chunk, threads);
            CHECK_IN(found.same_bits(expected), c.label(set) + " blocks " + std::to_string(block) +
                                                    "," + std::to_string(chunk) + " threads " +
                                                    std::to_string(threads));
          }
        }
      }
    }
  }
}

TEST(steps_have_the_bits_of_the_whole_sequence) {
  check<float>(Storage::kFloat32);
  check<double>(Storage::kFloat64);
}

TEST(fewer_bits_round_the_weights_and_nothing_else) {
  Random random(12);
  for (const Storage storage : {Storage::kBFloat16, Storage::kInt8}) {
    for (const CellInfo& cell : kCells) {
      for (const Sizes& sizes : kSizes) {
        Case<float> c(cell, of_cell(cell, sizes), random);
        for (const Set& set : sets()) {
          Case<float> rounded = c;
          rounded.round(storage);
          const Result<float> expected = rounded.whole(*set.whole);
          const Result<float> one = c.steps(*set.steps, storage, 1, 1, 1);
          for (int64_t i = 0; i < one.y.size(); ++i)
            CHECK_NEAR_IN(one.y[i], expected.y[i], 1e-4, c.label(set));
          CHECK_IN(c.steps(*set.steps, storage, 6, 4, 3).same_bits(one), c.label(set));
        }
      }
    }
  }
}

}  // namespace
