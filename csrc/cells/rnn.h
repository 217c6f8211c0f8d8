// Elman's network: h' = act(gx + gh), gx = W_ih·x + b_ih, gh = W_hh·h + b_hh, act = tanh or relu.
// Source: Elman 1990, "Finding structure in time"; the documentation of torch.nn.RNN.
#pragma once

#include "cells/math.h"
#include "cells/step.h"

namespace rnnfast {

// Saved: h'. It is also the output, so a kernel whose output is precise enough may read that
// instead.
template <class V>
struct RnnTanh {
  static constexpr int kGates = 1, kStates = 1, kSaved = 1, kOwnGate = -1;
  static constexpr bool kReadsH = false, kSavesOutput = true;
  static constexpr Phase kPhases[] = {whole_step(kGates, kSaved)};
  static constexpr Range kRange[] = {Range::kPlain};

  RNNFAST_HD static void forward(At<0>, const V (&gx)[1], const V (&gh)[1], const V (&)[1],
                                 V (&s_new)[1], V (&saved)[1]) {
    s_new[0] = saved[0] = tanh(gx[0] + gh[0]);
  }

  RNNFAST_HD static void backward(At<0>, const V (&d)[1], const V (&saved)[1], const V (&)[1],
                                  V (&dgx)[1], V (&dgh)[1], V (&ds)[1]) {
    dgx[0] = dgh[0] = tanh_backward(d[0], saved[0]);
    ds[0] = V(0);
  }
};

template <class V>
struct RnnRelu {
  static constexpr int kGates = 1, kStates = 1, kSaved = 1, kOwnGate = -1;
  static constexpr bool kReadsH = false, kSavesOutput = true;
  static constexpr Phase kPhases[] = {whole_step(kGates, kSaved)};
  static constexpr Range kRange[] = {Range::kPlain};

  RNNFAST_HD static void forward(At<0>, const V (&gx)[1], const V (&gh)[1], const V (&)[1],
                                 V (&s_new)[1], V (&saved)[1]) {
    s_new[0] = saved[0] = relu(gx[0] + gh[0]);
  }

  RNNFAST_HD static void backward(At<0>, const V (&d)[1], const V (&saved)[1], const V (&)[1],
                                  V (&dgx)[1], V (&dgh)[1], V (&ds)[1]) {
    dgx[0] = dgh[0] = relu_backward(d[0], saved[0]);
    ds[0] = V(0);
  }
};

}  // namespace rnnfast
