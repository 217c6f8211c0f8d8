// What the kernels of a generated cell are told of the step at hand, and what the generated text
// asks for: the rows of a sequence, by the rules of a scan.
#pragma once

#include "cuda/steps/math.h"
#include "scan/rules.h"
#include "scan/time_clip.h"

namespace rnnfast::cuda::steps {

// A buffer at the step at hand: [B, width].
struct Rows {
  float* at;           // null: all of it is 0
  const float* begin;  // the state, or gradient, that a sequence begins with
  int64_t width;
};

// kBuffers, kWeights, kConstants: how many the text names; arrays have one more, as none may be
// empty.
template <int kBuffers, int kWeights, int kConstants>
struct Step {
  Rules rules;
  int64_t H, t;
  bool training;
  float bound, limit;  // TimeClip
  float* kept;         // [B, scalars]: reductions that a later kernel of the step reads
  Rows rows[kBuffers + 1];
  const float* weights[kWeights + 1];
  float constants[kConstants + 1];
};

// Sequence b at the step at hand; one that is not alive takes no part in it.
struct Sequence {
  int64_t b;
  bool alive, reset, first, last;
};

template <class Step>
RNNFAST_DEVICE Sequence sequence_of(const Step& a, int64_t b) {
  Sequence q{b, b < a.rules.B && a.rules.alive(a.t, b), false, false, false};
  if (!q.alive) return q;
  q.reset = a.rules.reset(a.t, b);
  q.first = a.rules.first(a.t, b);
  q.last = a.t == a.rules.last(b);
  return q;
}

// Its row of the state before the step; null: of zeros.
RNNFAST_DEVICE const float* old_row(const Rows& rows, const Sequence& q) {
  if (q.reset) return nullptr;
  return (q.first ? rows.begin : rows.at) + q.b * rows.width;
}

// The base of every generated body: a thread's sequence, and the names that the text uses.
template <class Step>
struct Body {
  const Step& a;
  const Sequence q;
  const int64_t H;

  RNNFAST_DEVICE Body(const Step& step, const Sequence& sequence)
      : a(step), q(sequence), H(step.H) {}

  RNNFAST_DEVICE S constant(int k) const { return a.constants[k]; }
  RNNFAST_DEVICE const float* weight(int k) const { return a.weights[k]; }
  RNNFAST_DEVICE bool training() const { return a.training; }

  RNNFAST_DEVICE float* row(int k) const { return a.rows[k].at + q.b * a.rows[k].width; }
  RNNFAST_DEVICE const float* old(int k) const { return old_row(a.rows[k], q); }
  // The gradient of the state after the step, as the step after it left it, and as the output's.
  RNNFAST_DEVICE const float* incoming(int k) const {
    return (q.last ? a.rows[k].begin : a.rows[k].at) + q.b * a.rows[k].width;
  }
  RNNFAST_DEVICE const float* given(int k) const {
    return a.rows[k].at == nullptr ? nullptr : row(k);
  }
  // The k-th of `count` reductions.
  RNNFAST_DEVICE float* kept(int count, int k) const { return a.kept + q.b * count + k; }
  // Of a row that may be one of zeros.
  RNNFAST_DEVICE S read(const float* from, int64_t j) const {
    return from == nullptr ? 0.0f : load(from + j);
  }

  // What a step hands to the one before: nothing across a reset, and within grad_clip_time.
  RNNFAST_DEVICE S handed(S d) const { return q.reset ? 0.0f : limit_in_time(d, a.bound, a.limit); }
};

}  // namespace rnnfast::cuda::steps
