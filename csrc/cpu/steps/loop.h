// The loop of cells that are generated from a step (rnnfast/steps): T steps over the sequences that
// are alive, forward and backward alike. What a step does is the generated class's; the rules of a
// scan, threads and packed weights are here, and in rows.h the rows that a step reads and writes.
#pragma once

#include "cpu/in_place.h"
#include "cpu/steps/math.h"
#include "cpu/steps/parts.h"
#include "cpu/steps/rows.h"
#include "cpu/workspace.h"
#include "scan/time_clip.h"

namespace rnnfast::cpu::RNNFAST_ISA::steps {

using rnnfast::steps::View;

// What every generated class has: Self is it, with kBuffers, kScalars, kBackward, product(k, H),
// terms(k, H), pack(place) and step(place, live).
template <class Self, class S, int kProducts>
class Pass {
 public:
  using V = Vec<S>;
  static constexpr int L = V::kLanes;

  explicit Pass(const Arguments& a)
      : a_(a),
        rules_{a.T, a.B, a.lengths, a.resets, a.reverse != 0},
        H(a.H),
        clip_(TimeClip<S>::of(a.grad_clip_time)) {
    Arena arena(a.workspace);
    take(arena);
  }

  // Bytes of workspace.
  static int64_t bytes(const Arguments& a) {
    Pass sizes(a, nullptr);
    Arena arena(nullptr);
    sizes.take(arena);
    return reinterpret_cast<int64_t>(arena.template take<char>(0)) + kLine;
  }

  // Whether the team was dissolved.
  bool run() {
    const Split split{int(a_.rows), int(a_.units)};
    fill_zero(zeros_, zeros_width_);
    return with_team(split, [&](const Place& place) {
      begin(place);
      scan(place);
    });
  }

 protected:
  const S* weight(int k) const { return static_cast<const S*>(a_.weights[k]); }
  S constant(int k) const { return static_cast<S>(a_.constants[k]); }
  bool training() const { return a_.training != 0; }

  template <int planes>
  void pack_product(const Place& place, int k) {
    const auto terms = Self::terms(k, H);
    constexpr int U = panel_units_of(planes);
    const Product product = Self::product(k, H);
    const int64_t width = product.block_width(), each = product.block_panels(L);
    const Panels<S>& panels = panels_[k];
    const Range mine = place.share(panels.count);
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      const int64_t block = q / each, begin = q % each * U * L;
      const int units = panel_vectors(divide_up(width, L), q % each, U);
      const int64_t step = units * planes * L;
      S* to = panels.panel(q);
      for (int term = 0; term < terms.count; ++term) {
        const int64_t values = terms.K[term] / product.blocks;
        for (int g = 0; g < planes; ++g) {
          const View& view = a_.views[terms.first + g * terms.count + term];
          for (int u = 0; u < units; ++u) {
            S* const column = to + (u * planes + g) * L;
            pack_columns(view, block, begin + u * L, width, values, column, step);
          }
        }
        to += values * step;
      }
    }
  }

  // L columns of a panel, units [j, j + L) of a view's block. step: from one k of it to the next.
  void pack_columns(const View& view, int64_t block, int64_t j, int64_t width, int64_t K, S* to,
                    int64_t step) {
    constexpr int64_t kBlock = 32;
    const S* from = weight(int(view.weight)) + view.offset + block * view.block + j * view.row;
    int64_t begin = 0;
    if (kTransposes && view.column == 1 && j + L <= width) {
      for (; begin + L <= K; begin += L) {
        V square[L];
        for (int lane = 0; lane < L; ++lane) square[lane] = V::load(from + lane * view.row + begin);
        transpose(square);
        for (int k = 0; k < L; ++k) square[k].store(to + (begin + k) * step);
      }
    }
    for (int64_t k0 = begin; k0 < K; k0 += kBlock) {
      const int64_t k1 = k0 + kBlock < K ? k0 + kBlock : K;
      if (view.row == 1 && j + L <= width) {
        for (int64_t k = k0; k < k1; ++k) {
          V::load(from + k * view.column).store(to + k * step);
        }
        continue;
      }
      for (int lane = 0; lane < L; ++lane) {
        const bool exists = j + lane < width;
        const S* row = from + (exists ? lane * view.row : 0);
        for (int64_t k = k0; k < k1; ++k) {
          to[k * step + lane] = exists ? row[k * view.column] : S(0);
        }
      }
    }
  }

  // done(i, j, lanes that exist, sums[planes]) of product k for this thread's units.
  template <int planes, int N, class Done>
  void multiply(const Place& place, const Live<S>& live, int k, const Segment<S> (&segments)[N],
                const Done& done) {
    if constexpr (kTransposes && !Self::kBackward) {
      if (in_place()) {
        const int alone[] = {k};
        Segment<S> own[1][N];
        for (int term = 0; term < N; ++term) own[0][term] = segments[term];
        return multiply_in_place<planes>(
            place, live, alone, own,
            [&](int64_t i, int64_t j, int64_t n, const V* const* x) { done(i, j, n, x[0]); });
      }
    }
    constexpr int U = panel_units_of(planes);
    const Panels<S>& panels = panels_[k];
    const Product product = Self::product(k, H);
    const int64_t width = product.block_width(), each = product.block_panels(L);
    const auto operands = [&](int64_t q) {
      const int units = panel_vectors(divide_up(width, L), q % each, U);
      Operands<S, N> own{{}, panels.panel(q), nullptr, units * planes};
      for (int s = 0; s < N; ++s) {
        const int64_t K = segments[s].K / product.blocks;
        own.segments[s] = {segments[s].rows, K, segments[s].offset + q / each * K};
      }
      return own;
    };
    panels_product<U * planes, U, N, S>(part(panels.count, 1, place.unit, place.split.units),
                                        live.n, operands, [&](int64_t q, int64_t i, const V* sum) {
                                          const int64_t first = q / each * width,
                                                        begin = q % each * U * L;
                                          for (int u = 0; u < U; ++u) {
                                            const int64_t j = begin + u * L;
                                            if (U > 1 && j >= width) break;
                                            done(i, first + j, width - j, sum + u * planes);
                                          }
                                        });
  }

  // done(i, j, lanes that exist, sums[product][planes]) of products that are alike, for this thread's
  // units: of each the rows that registers hold, one product after the other, while they and the
  // panels that several of them share are near.
  template <int planes, int sets, int N, class Done>
  void multiply_together(const Place& place, const Live<S>& live, const int (&products)[sets],
                         const Segment<S> (&segments)[sets][N], const Done& done) {
    if constexpr (kTransposes && !Self::kBackward) {
      if (in_place()) return multiply_in_place<planes>(place, live, products, segments, done);
    }
    constexpr int U = panel_units_of(planes), NV = U * planes;
    const Product product = Self::product(products[0], H);
    const int64_t width = product.block_width(), each = product.block_panels(L);
    const Range mine = part(panels_[products[0]].count, 1, place.unit, place.split.units);
    for (int64_t q = mine.begin; q < mine.end; ++q) {
      Segment<S> own[sets][N];
      for (int s = 0; s < sets; ++s) {
        for (int term = 0; term < N; ++term) {
          const int64_t K = segments[s][term].K / product.blocks;
          own[s][term] = {segments[s][term].rows, K, segments[s][term].offset + q / each * K};
        }
      }
      const int64_t first = q / each * width, begin = q % each * U * L;
      const int units = panel_vectors(divide_up(width, L), q % each, U);
      with_vectors<NV, planes>(units * planes, [&](auto vectors) {
        constexpr int kMax = kPanelRows<vectors>;
        int64_t i = 0;
        for (int64_t groups = divide_up(live.n, kMax); i < live.n; --groups) {
          const int64_t rows = divide_up(live.n - i, groups);
          V sum[sets][kMax][vectors];
          for (int s = 0; s < sets; ++s) {
            const S* const none = nullptr;
            sum_some<kMax, vectors>(rows, own[s], i, panels_[products[s]].panel(q), none, sum[s]);
          }
          for (int64_t r = 0; r < rows; ++r) {
            for (int u = 0; u < units; ++u) {
              const V* x[sets];
              for (int s = 0; s < sets; ++s) x[s] = sum[s][r] + u * planes;
              done(i + r, first + begin + u * L, width - begin - u * L, x);
            }
          }
          i += rows;
        }
      });
    }
  }

  // body(j, lanes that exist) for this thread's part of `width` units.
  template <class Body>
  void units(const Place& place, int64_t width, const Body& body) const {
    const Range mine = part(width, kWide * L, place.unit, place.split.units);
    for (int64_t j = mine.begin; j < mine.end; j += L) body(j, width - j);
  }

  // body(j, Whole or Lanes) for all of `width` units.
  template <class Body>
  static void every(int64_t width, const Body& body) {
    int64_t j = 0;
    for (; j + L <= width; j += L) body(j, Whole{});
    if (j < width) body(j, Lanes{width - j});
  }

  // Lanes that do not exist hold `value`, which changes no sum or largest.
  static V held(V x, Whole, S) { return x; }
  static V held(V x, Lanes lanes, S value) {
    for (int64_t lane = lanes.n; lane < L; ++lane) x.v[lane] = value;
    return x;
  }

  static S sum(V x) {
    S total = x.v[0];
    for (int lane = 1; lane < L; ++lane) total += x.v[lane];
    return total;
  }
  static S largest(V x) {
    S found = x.v[0];
    for (int lane = 1; lane < L; ++lane) found = maximum(found, x.v[lane]);
    return found;
  }

  // What a step hands to the one before: nothing across a reset, and within grad_clip_time.
  V handed(V d, bool reset) const {
    d = across(d, reset);
    const V limit(clip_.limit), negative(-clip_.limit);
    const V high = select<S>(d.v > clip_.bound, limit, d);
    return select<S>(d.v < -clip_.bound, negative, high);
  }

  static V across(V d, bool reset) { return reset ? V(S(0)) : d; }
  // Up to where the limit's derivative is 1. at: at the bound itself; where what lies beyond is
  // zeroed it always is.
  S bound(bool at) const {
    return at || clip_.limit == S(0) ? clip_.bound : std::nextafter(clip_.bound, S(0));
  }

  const int64_t H;

 private:
  // Sizes only.
  Pass(const Arguments& a, std::nullptr_t) : a_(a), rules_{}, H(a.H) {}

  Self& self() { return static_cast<Self&>(*this); }
  int64_t threads() const { return a_.rows * a_.units; }

  bool in_place() const { return kTransposes && !Self::kBackward && a_.in_place; }

  // This thread's share of what is done before the first step.
  void begin(const Place& place) {
    const bool packs = !a_.packed && !in_place();
    if (packs) self().pack(place);
    if (a_.input) a_.input->begin(a_.input->of, int(place.id()), int(place.threads()));
    if (packs || a_.input) place.wait_for_all();
  }

  // `multiply_together` with weights as they lie.
  template <int planes, int sets, int N, class Done>
  __attribute__((noinline)) void multiply_in_place(const Place& place, const Live<S>& live,
                                                   const int (&products)[sets],
                                                   const Segment<S> (&segments)[sets][N],
                                                   const Done& done) const {
    const Product product = Self::product(products[0], H);
    const int64_t width = product.block_width(), each = divide_up(width, L);
    const Range mine = part(product.blocks * each, 1, place.unit, place.split.units);
    for (int64_t v = mine.begin; v < mine.end; ++v) {
      const int64_t block = v / each, j = v % each * L;
      const auto rows = [&](auto count, int64_t i) {
        V sum[sets][count][planes];
        for (int s = 0; s < sets; ++s) sum_in_place(products[s], block, j, segments[s], i, sum[s]);
        for (int r = 0; r < count; ++r) {
          const V* x[sets];
          for (int s = 0; s < sets; ++s) x[s] = sum[s][r];
          done(i + r, block * width + j, width - j, x);
        }
      };
      int64_t i = 0;
      for (; i + 4 <= live.n; i += 4) rows(Index<4>{}, i);
      for (; i + 2 <= live.n; i += 2) rows(Index<2>{}, i);
      for (; i < live.n; ++i) rows(Index<1>{}, i);
    }
  }

  // Of product k the units [j, j + L) of a block, of rows [first, first + R). Segments may be several
  // terms one behind the other.
  template <int R, int planes, int N>
  void sum_in_place(int k, int64_t block, int64_t j, const Segment<S> (&segments)[N], int64_t first,
                    V (&sum)[R][planes]) const {
    const Product product = Self::product(k, H);
    const auto terms = Self::terms(k, H);
    const int64_t lanes = product.block_width() - j;
    for (int g = 0; g < planes; ++g) {
      V found[R];
      for (int r = 0; r < R; ++r) found[r] = V(S(0));
      int64_t done = 0;  // values of the segment
      for (int term = 0, s = 0; term < terms.count; ++term) {
        const int64_t values = terms.K[term] / product.blocks;
        const int64_t whole = segments[s].K / product.blocks;
        const View& view = a_.views[terms.first + g * terms.count + term];
        const S* w = weight(int(view.weight)) + view.offset + block * view.block + j * view.row;
        const Segment<S> own{segments[s].rows, values, segments[s].offset + block * whole + done};
        if (view.column == 1) {
          add_in_place<R>(own, first, WeightRows<S>{w, view.row, lanes}, found);
        } else {
          add_columns_in_place<R>(own, first, WeightRows<S>{w, view.column, lanes}, found);
        }
        done += values;
        if (done == whole) ++s, done = 0;
      }
      for (int r = 0; r < R; ++r) sum[r][g] = found[r];
    }
  }

  void take(Arena& arena) {
    for (int k = 0; k < kProducts && !in_place(); ++k) {
      const Product p = Self::product(k, H);
      const int64_t columns = panel_units_of(p.planes) * p.planes * L;
      const int64_t count = p.blocks * p.block_panels(L);
      panels_[k] = Panels<S>(arena, count * columns, columns, p.K / p.blocks, false);
    }
    int64_t widest = 1;
    for (int k = 0; k < Self::kBuffers; ++k) {
      if (a_.buffers[k].width > widest) widest = a_.buffers[k].width;
    }
    zeros_width_ = widest;
    zeros_ = arena.template take<S>(widest);
    b_ = arena.template take<int64_t>(threads() * stride());
    reset_ = arena.template take<bool>(threads() * stride() * 8);
    pointers_ = arena.template take<S*>(threads() * stride() * Self::kBuffers);
    tables_ = arena.template take<S**>(threads() * (Self::kBuffers + 8));
    scalars_ = arena.template take<S>(threads() * stride() * Self::kScalars * 2);
  }

  int64_t stride() const { return a_.B + 8; }

  BufferRows<S> rows() const { return {a_, rules_, zeros_}; }

  Live<S> live_of(const Place& place) const {
    const int64_t id = place.id();
    Live<S> live;
    live.b = b_ + id * stride();
    live.reset = reset_ + id * stride() * 8;
    live.p = tables_ + id * (Self::kBuffers + 8);
    for (int k = 0; k < Self::kBuffers; ++k) {
      live.p[k] = pointers_ + (id * Self::kBuffers + k) * stride();
    }
    live.scalars = scalars_ + id * stride() * Self::kScalars * 2;
    return live;
  }

  void scan(const Place& place) {
    Live<S> live = live_of(place);
    const Range mine = part(a_.B, 1, place.row, place.split.rows);
    for (int64_t count = 0; count < a_.T; ++count) {
      const int64_t step = Self::kBackward ? a_.T - 1 - count : count, t = rules_.time(step);
      collect(count, t, made_before(count, mine, place), mine, place, live);
      self().step(place, live);
      if (place.gone) return;
      if (Self::kBackward && a_.input) a_.input->after(a_.input->of, step, mine.begin, mine.end);
    }
    if (place.wait() && place.unit == 0) rows().keep_last(Self::kBuffers, mine, Self::kBackward);
  }

  // The gates of a step, where they are made here: row b is at b · their width.
  S* made_before(int64_t count, Range mine, const Place& place) const {
    if (Self::kBackward || !a_.input || mine.size() == 0) return nullptr;
    return static_cast<S*>(a_.input->before(a_.input->of, count, place.row, mine.begin, mine.end));
  }

  void collect(int64_t count, int64_t t, S* made, Range mine, const Place& place, Live<S>& live) {
    const BufferRows<S> rows = this->rows();
    live.n = 0;
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      if (!rules_.alive(t, b)) {
        if (place.unit == 0) rows.clear(Self::kBuffers, t, b);
        continue;
      }
      const int64_t i = live.n++;
      live.b[i] = b;
      live.reset[i] = rules_.reset(t, b);
      for (int k = 0; k < Self::kBuffers; ++k) {
        const Buffer& buffer = a_.buffers[k];
        const bool here = static_cast<Kind>(buffer.kind) == Kind::kMade;
        live.p[k][i] = here ? made + b * buffer.width : rows.row(buffer, count, t, b);
      }
    }
  }

  const Arguments& a_;
  const Rules rules_;
  const TimeClip<S> clip_{};
  Panels<S> panels_[kProducts + 1];
  int64_t zeros_width_ = 0;
  S* zeros_ = nullptr;
  int64_t* b_ = nullptr;
  bool* reset_ = nullptr;
  S** pointers_ = nullptr;
  S*** tables_ = nullptr;
  S* scalars_ = nullptr;
};

}  // namespace rnnfast::cpu::RNNFAST_ISA::steps
