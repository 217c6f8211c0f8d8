// LSTM, gates i, f, g, o; states h, c:
//
//   i = σ(gx_i + gh_i)   f = σ(gx_f + gh_f)   g = tanh(gx_g + gh_g)   o = σ(gx_o + gh_o)
//   c' = f·c + i·g       h' = o·tanh(c')
//
// Source: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the
// documentation of torch.nn.LSTM.
#pragma once

#include "cells/math.h"
#include "cells/step.h"

namespace rnnfast {

// Saved: i, f, g, o. Backward gets the previous cell state in s[1] (kernels keep every c, in fp32
// at least) and computes c' and tanh(c') again from these: one tanh instead of a fifth array. It
// does not read s[0].
template <class V>
struct Lstm {
  static constexpr int kGates = 4, kStates = 2, kSaved = 4, kOwnGate = -1;
  static constexpr bool kReadsH = false, kSavesOutput = false;
  static constexpr Phase kPhases[] = {whole_step(kGates, kSaved)};
  static constexpr Range kRange[] = {Range::kSigmoid, Range::kSigmoid, Range::kTanh,
                                     Range::kSigmoid};

  RNNFAST_HD static void forward(At<0>, const V (&gx)[4], const V (&gh)[4], const V (&s)[2],
                                 V (&s_new)[2], V (&saved)[4]) {
    const V i = sigmoid(gx[0] + gh[0]);
    const V f = sigmoid(gx[1] + gh[1]);
    const V g = tanh(gx[2] + gh[2]);
    const V o = sigmoid(gx[3] + gh[3]);
    const V c = f * s[1] + i * g;
    s_new[0] = o * tanh(c);
    s_new[1] = c;
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }

  RNNFAST_HD static void backward(At<0>, const V (&d)[2], const V (&saved)[4], const V (&s)[2],
                                  V (&dgx)[4], V (&dgh)[4], V (&ds)[2]) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = tanh(f * s[1] + i * g);
    const V dc = d[1] + tanh_backward(d[0] * o, tanh_c);
    dgx[0] = dgh[0] = sigmoid_backward(dc * g, i);
    dgx[1] = dgh[1] = sigmoid_backward(dc * s[1], f);
    dgx[2] = dgh[2] = tanh_backward(dc * i, g);
    dgx[3] = dgh[3] = sigmoid_backward(d[0] * tanh_c, o);
    ds[0] = V(0);
    ds[1] = dc * f;
  }
};

// LSTM with a recurrent projection: m = o·tanh(c') has H values, h' = W_hr·m has P < H (Sak et al.
// 2014; torch.nn.LSTM with proj_size). Here s_new[0] is m and d[0] is dm = W_hrᵀ·dh'; s[0] is not
// read and ds[0] is 0. Saved: i, f, g, o, and m, the right-hand side of dW_hr = Σ dh'·mᵀ.
template <class V>
struct LstmProj {
  static constexpr int kGates = 4, kStates = 2, kSaved = 5, kOwnGate = -1;
  static constexpr bool kReadsH = false, kSavesOutput = false;
  static constexpr int kM = 4;
  static constexpr Phase kPhases[] = {whole_step(kGates, kSaved), projection(kM)};
  static constexpr Range kRange[] = {Range::kSigmoid, Range::kSigmoid, Range::kTanh,
                                     Range::kSigmoid, Range::kPlain};

  RNNFAST_HD static void forward(At<0>, const V (&gx)[4], const V (&gh)[4], const V (&s)[2],
                                 V (&s_new)[2], V (&saved)[5]) {
    V gates[4];
    Lstm<V>::forward(At<0>{}, gx, gh, s, s_new, gates);
    for (int k = 0; k < 4; ++k) saved[k] = gates[k];
    saved[kM] = s_new[0];
  }

  RNNFAST_HD static void backward(At<0>, const V (&d)[2], const V (&saved)[5], const V (&s)[2],
                                  V (&dgx)[4], V (&dgh)[4], V (&ds)[2]) {
    const V gates[4] = {saved[0], saved[1], saved[2], saved[3]};
    Lstm<V>::backward(At<0>{}, d, gates, s, dgx, dgh, ds);
  }
};

}  // namespace rnnfast
