// The host's loop of a generated cell: T steps, forward and backward alike, whose kernels follow
// one another on a stream. What a step does is the generated class's.
#pragma once

#include <exception>
#include <string>

#include "cuda/device/stream.h"
#include "cuda/steps/ends.h"
#include "cuda/steps/product.h"
#include "cuda/steps/rows.h"

namespace rnnfast::cuda::steps {

using rnnfast::steps::Arguments;

// Below so many blocks of wide tiles most of a GPU would be idle; narrow ones are more. Not measured.
inline constexpr int64_t kFewBlocks = 64;

// What Self has: kBuffers, kScalars, kBackward, and step().
template <class Self, int kBuffers, int kWeights, int kConstants>
class Pass {
 public:
  using OwnStep = Step<kBuffers, kWeights, kConstants>;

  Pass(const Arguments& a, Stream stream) : H(a.H), a_(a), stream_(stream) {
    step_.rules = {a.T, a.B, a.lengths, a.resets, a.reverse != 0};
    step_.H = a.H;
    step_.training = a.training != 0;
    const auto clip = TimeClip<float>::of(a.grad_clip_time);
    step_.bound = clip.bound;
    step_.limit = clip.limit;
    step_.kept = static_cast<float*>(a.workspace);
    for (int k = 0; k < kWeights; ++k) step_.weights[k] = static_cast<const float*>(a.weights[k]);
    for (int k = 0; k < kConstants; ++k) step_.constants[k] = float(a.constants[k]);
  }

  // Bytes of workspace.
  static int64_t bytes(const Arguments& a) { return a.B * int64_t(sizeof(float)) * Self::kScalars; }

  void run() {
    const int64_t parts = a_.T < 64 ? a_.T : 64;
    if (a_.lengths != nullptr) {
      end({"own_clear", a_.B, parts, kEndThreads}, &own_clear,
          [](const Buffer& buffer) { return buffer.clear && buffer.base != nullptr; });
    }
    for (int64_t count = 0; count < a_.T; ++count) {
      step_.t = step_.rules.time(Self::kBackward ? a_.T - 1 - count : count);
      for (int k = 0; k < kBuffers; ++k) step_.rows[k] = rows_of(a_.buffers[k], count);
      static_cast<Self&>(*this).step();
    }
    end({"own_keep_last", a_.B, 1, kEndThreads}, &own_keep_last,
        [](const Buffer& buffer) { return buffer.last != nullptr; });
  }

 protected:
  // A product of which the planes × terms views begin at `view`.
  template <int kPlanes, int kTerms>
  Product<kPlanes, kTerms> product(int64_t view, Product<kPlanes, kTerms> made) const {
    for (int p = 0; p < kPlanes; ++p) {
      for (int k = 0; k < kTerms; ++k) {
        const auto& given = a_.views[view + p * kTerms + k];
        const auto* weight = static_cast<const float*>(a_.weights[given.weight]);
        made.matrices[p][k] = {weight + given.offset, given.row, given.column, given.block};
      }
    }
    return made;
  }

  // A product whose sums Own takes.
  template <class Own, class Shape>
  void fused(const Shape& product) const {
    start("own_fused", product, [&](auto tile, const auto& how, const auto& args) {
      using Args = std::decay_t<decltype(args)>;
      launch(how, &own_fused<Own, decltype(tile), Args>, args, stream_);
    });
  }

  // A product whose sums go to memory.
  template <class Shape>
  void apart(const Shape& product) const {
    start("own_product", product, [&](auto tile, const auto& how, const auto& args) {
      using Args = std::decay_t<decltype(args)>;
      launch(how, &own_product<decltype(tile), Args>, args, stream_);
    });
  }

  // `widest`: units of the widest row that Own goes over.
  template <class Own>
  void rows(int64_t widest, bool reduces) const {
    const int64_t units = widest < kMostThreads ? (widest + 31) / 32 * 32 : kMostThreads;
    const int64_t threads = units > 0 ? units : 32;
    const RowsArgs<OwnStep> args{step_, reduces ? 1 : (widest + threads - 1) / threads};
    Launch how{"own_rows", a_.B, args.parts > 0 ? args.parts : 1, int(threads)};
    launch(how, &own_rows<Own, OwnStep>, args, stream_);
  }

  const int64_t H;

 private:
  template <class Shape, class F>
  void start(const char* name, const Shape& product, const F& started) const {
    const int64_t tiles = (product.width + kUnits - 1) / kUnits;
    const ProductArgs<OwnStep, Shape> args{step_, product, tiles};
    static_assert(sizeof(args) <= 4096, "a launch takes no more");
    const int64_t grid_x = tiles * product.blocks;
    const auto with = [&](auto tile) {
      const int64_t rows = decltype(tile)::kRows;
      started(tile, Launch{name, grid_x, (a_.B + rows - 1) / rows, kProductThreads}, args);
    };
    const int64_t wide = grid_x * ((a_.B + Wide::kRows - 1) / Wide::kRows);
    if (a_.B <= Narrow::kRows || wide < kFewBlocks) {
      with(Narrow());
    } else {
      with(Wide());
    }
  }

  // A kernel of ends.h, for the buffers that it concerns.
  template <class Concerns>
  void end(const Launch& how, void (*kernel)(EndArgs), const Concerns& concerns) const {
    EndArgs args{step_.rules, Self::kBackward, 0, {}};
    for (int k = 0; k < kBuffers; ++k) {
      if (concerns(a_.buffers[k])) args.buffers[args.count++] = a_.buffers[k];
      if (args.count == kMostEnds || (args.count > 0 && k + 1 == kBuffers)) {
        launch(how, kernel, args, stream_);
        args.count = 0;
      }
    }
  }

  Rows rows_of(const Buffer& buffer, int64_t count) const {
    float* base = static_cast<float*>(buffer.base);
    if (base == nullptr) return {nullptr, nullptr, buffer.width};
    const int64_t all = a_.B * buffer.width;
    const int64_t own = (count & 1) * all, other = all - own;
    const int64_t before = step_.rules.before(step_.t);
    const auto* begin = static_cast<const float*>(buffer.init);
    switch (Kind(buffer.kind)) {
      case Kind::kStep:
      case Kind::kNew:
        return {base + step_.t * all, begin, buffer.width};
      case Kind::kSequence:
        return {base, begin, buffer.width};
      case Kind::kOld:  // at a first step nobody reads what was before it
        return {0 <= before && before < a_.T ? base + before * all : base, begin, buffer.width};
      case Kind::kOldSlot:
      case Kind::kIncoming:
        return {base + other, begin, buffer.width};
      case Kind::kNewSlot:
      case Kind::kOutgoing:
        return {base + own, begin, buffer.width};
    }
    return {};
  }

  const Arguments& a_;
  const Stream stream_;
  OwnStep step_{};
};

// Why it could not be launched; null where it could.
template <class P>
const char* run_pass(const Arguments* a, void* stream) {
  thread_local std::string message;
  try {
    P(*a, static_cast<Stream>(stream)).run();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace rnnfast::cuda::steps
