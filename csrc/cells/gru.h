// GRU, gates r, z, n; h' = (1 − z)·n + z·h with torch's meaning of z (Cho et al. 2014, equation 7).
// The two cells differ in where the reset gate r acts: after the recurrent product (torch, cuDNN)
// or before it (paper).
#pragma once

#include "cells/math.h"
#include "cells/step.h"

namespace rnnfast {

// Reset after the product:
//
//   r = σ(gx_r + gh_r)   z = σ(gx_z + gh_z)   n = tanh(gx_n + r·gh_n)
//
// Source: the documentation of torch.nn.GRU. Saved: r, z, n, q = gh_n.
template <class V>
struct Gru {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kOwnGate = 2;
  static constexpr bool kReadsH = true, kSavesOutput = false;
  static constexpr Phase kPhases[] = {whole_step(kGates, kSaved)};
  static constexpr Range kRange[] = {Range::kSigmoid, Range::kSigmoid, Range::kTanh, Range::kPlain};

  RNNFAST_HD static void forward(At<0>, const V (&gx)[3], const V (&gh)[3], const V (&s)[1],
                                 V (&s_new)[1], V (&saved)[4]) {
    const V r = sigmoid(gx[0] + gh[0]);
    const V z = sigmoid(gx[1] + gh[1]);
    const V n = tanh(gx[2] + r * gh[2]);
    s_new[0] = (V(1) - z) * n + z * s[0];
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = gh[2];
  }

  RNNFAST_HD static void backward(At<0>, const V (&d)[1], const V (&saved)[4], const V (&s)[1],
                                  V (&dgx)[3], V (&dgh)[3], V (&ds)[1]) {
    const V r = saved[0], z = saved[1], n = saved[2], q = saved[3];
    const V dn = tanh_backward(d[0] * (V(1) - z), n);  // of tanh's argument
    dgx[0] = dgh[0] = sigmoid_backward(dn * q, r);
    dgx[1] = dgh[1] = sigmoid_backward(d[0] * (s[0] - n), z);
    dgx[2] = dn;
    dgh[2] = dn * r;
    ds[0] = d[0] * z;
  }
};

// Reset before the product, so a step has two products and two phases:
//
//   r = σ(gx_r + gh_r)   z = σ(gx_z + gh_z)   u = r·h
//   n = tanh(gx_n + W_hn·u + b_hn)   h' = (1 − z)·n + z·h
//
// Source: Cho et al. 2014, equations 5–8. Saved: r, z, n, u.
template <class V>
struct GruResetBefore {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kOwnGate = -1;
  static constexpr bool kReadsH = true, kSavesOutput = false;
  static constexpr int kU = 3;
  static constexpr Phase kPhases[] = {
      {Matrix::kWhh, 0, 2, kOperandH, bits(0, 1, kU), bits(), bits(0)},
      {Matrix::kWhh, 2, 1, kU, bits(2), bits(1), bits(1, 2)},
  };
  static constexpr Range kRange[] = {Range::kSigmoid, Range::kSigmoid, Range::kTanh, Range::kPlain};

  RNNFAST_HD static void forward(At<0>, const V (&gx)[2], const V (&gh)[2], const V (&s)[1],
                                 V (&)[1], V (&saved)[4]) {
    const V r = sigmoid(gx[0] + gh[0]);
    saved[0] = r;
    saved[1] = sigmoid(gx[1] + gh[1]);
    saved[kU] = r * s[0];
  }

  RNNFAST_HD static void forward(At<1>, const V (&gx)[1], const V (&gh)[1], const V (&s)[1],
                                 V (&s_new)[1], V (&saved)[4]) {
    const V z = saved[1];
    const V n = tanh(gx[0] + gh[0]);
    s_new[0] = (V(1) - z) * n + z * s[0];
    saved[2] = n;
  }

  RNNFAST_HD static void backward(At<1>, const V (&d)[1], const V (&saved)[4], const V (&s)[1],
                                  V (&dgx)[3], V (&dgh)[3], V (&ds)[1]) {
    const V z = saved[1], n = saved[2];
    dgx[1] = dgh[1] = sigmoid_backward(d[0] * (s[0] - n), z);
    dgx[2] = dgh[2] = tanh_backward(d[0] * (V(1) - z), n);
    ds[0] = d[0] * z;
  }

  // d[0] is du.
  RNNFAST_HD static void backward(At<0>, const V (&d)[1], const V (&saved)[4], const V (&s)[1],
                                  V (&dgx)[3], V (&dgh)[3], V (&ds)[1]) {
    const V r = saved[0];
    dgx[0] = dgh[0] = sigmoid_backward(d[0] * s[0], r);
    ds[0] = ds[0] + d[0] * r;
  }
};

}  // namespace rnnfast
