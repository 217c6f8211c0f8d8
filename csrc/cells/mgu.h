// MGU, gates f, n: a GRU whose one gate f both forgets and updates.
//
//   f = σ(gx_f + gh_f)   u = f·h
//   n = tanh(gx_n + W_hn·u + b_hn)   h' = (1 − f)·h + f·n
//
// Source: Zhou et al. 2016, arXiv:1603.09420, equations 10–12.
#pragma once

#include "cells/math.h"
#include "cells/step.h"

namespace rnnfast {

// Saved: f, n, u.
template <class V>
struct Mgu {
  static constexpr int kGates = 2, kStates = 1, kSaved = 3, kOwnGate = -1;
  static constexpr bool kReadsH = true, kSavesOutput = false;
  static constexpr int kU = 2;
  static constexpr Phase kPhases[] = {
      {Matrix::kWhh, 0, 1, kOperandH, bits(0, kU), bits(), bits(0)},
      {Matrix::kWhh, 1, 1, kU, bits(1), bits(0), bits(0, 1)},
  };
  static constexpr Range kRange[] = {Range::kSigmoid, Range::kTanh, Range::kPlain};

  RNNFAST_HD static void forward(At<0>, const V (&gx)[1], const V (&gh)[1], const V (&s)[1],
                                 V (&)[1], V (&saved)[3]) {
    const V f = sigmoid(gx[0] + gh[0]);
    saved[0] = f;
    saved[kU] = f * s[0];
  }

  RNNFAST_HD static void forward(At<1>, const V (&gx)[1], const V (&gh)[1], const V (&s)[1],
                                 V (&s_new)[1], V (&saved)[3]) {
    const V f = saved[0];
    const V n = tanh(gx[0] + gh[0]);
    s_new[0] = (V(1) - f) * s[0] + f * n;
    saved[1] = n;
  }

  // Leaves the part of df, of f itself, that comes from h'.
  RNNFAST_HD static void backward(At<1>, const V (&d)[1], const V (&saved)[3], const V (&s)[1],
                                  V (&dgx)[2], V (&dgh)[2], V (&ds)[1]) {
    const V f = saved[0], n = saved[1];
    dgx[0] = dgh[0] = d[0] * (n - s[0]);
    dgx[1] = dgh[1] = tanh_backward(d[0] * f, n);
    ds[0] = d[0] * (V(1) - f);
  }

  // d[0] is du.
  RNNFAST_HD static void backward(At<0>, const V (&d)[1], const V (&saved)[3], const V (&s)[1],
                                  V (&dgx)[2], V (&dgh)[2], V (&ds)[1]) {
    const V f = saved[0];
    dgx[0] = dgh[0] = sigmoid_backward(dgx[0] + d[0] * s[0], f);
    ds[0] = ds[0] + d[0] * f;
  }
};

}  // namespace rnnfast
