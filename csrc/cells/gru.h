// GRU, gates r, z, n; h' = (1 − z)·n + z·h with torch's meaning of z (Cho et al. 2014, equation 7).
// The two cells differ in where the reset gate r acts: after the recurrent product (torch, cuDNN)
// or before it (paper).
#pragma once

#include "cells/math.h"

namespace rnnfast {

// Reset after the product:
//
//   r = σ(gx_r + gh_r)   z = σ(gx_z + gh_z)   n = tanh(gx_n + r·gh_n)
//
// Source: the documentation of torch.nn.GRU. Saved: r, z, n, q = gh_n.
template <class V>
struct Gru {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kPhases = 1;
  static constexpr bool kProjected = false;

  RNNFAST_HD static void forward(const V (&gx)[3], const V (&gh)[3], const V (&s)[1], V (&s_new)[1],
                                 V (&saved)[4]) {
    const V r = sigmoid(gx[0] + gh[0]);
    const V z = sigmoid(gx[1] + gh[1]);
    const V n = tanh(gx[2] + r * gh[2]);
    s_new[0] = (V(1) - z) * n + z * s[0];
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = gh[2];
  }

  RNNFAST_HD static void backward(const V (&ds_new)[1], const V (&saved)[4], const V (&s)[1],
                                  V (&dgx)[3], V (&dgh)[3], V (&ds)[1]) {
    const V r = saved[0], z = saved[1], n = saved[2], q = saved[3];
    const V dn = tanh_backward(ds_new[0] * (V(1) - z), n);  // of tanh's argument
    dgx[0] = dgh[0] = sigmoid_backward(dn * q, r);
    dgx[1] = dgh[1] = sigmoid_backward(ds_new[0] * (s[0] - n), z);
    dgx[2] = dn;
    dgh[2] = dn * r;
    ds[0] = ds_new[0] * z;
  }
};

// Reset before the product, so a step has two products and two phases:
//
//   r = σ(gx_r + gh_r)   z = σ(gx_z + gh_z)   u = r·h             forward_reset
//   gh_n = W_hn·u + b_hn                                          the product in between
//   n = tanh(gx_n + gh_n)   h' = (1 − z)·n + z·h                  forward_candidate
//
// Backward goes the same way up: backward_candidate, then du = W_hnᵀ·dg_n, then backward_reset.
// Each dg_ is the gradient of that gate's gx and gh alike. In the gradient of W_hh the rows of n
// are dg_n·uᵀ, those of r and z are dg·hᵀ.
//
// Source: Cho et al. 2014, equations 5–8. Saved: r, z, n, u (kSavedU).
template <class V>
struct GruResetBefore {
  static constexpr int kGates = 3, kStates = 1, kSaved = 4, kPhases = 2;
  static constexpr bool kProjected = false;
  static constexpr int kSavedU = 3;

  // gx and gh of r and z. Fills saved[0], saved[1] and saved[kSavedU].
  RNNFAST_HD static void forward_reset(const V (&gx)[2], const V (&gh)[2], const V (&s)[1],
                                       V (&saved)[4]) {
    const V r = sigmoid(gx[0] + gh[0]);
    saved[0] = r;
    saved[1] = sigmoid(gx[1] + gh[1]);
    saved[kSavedU] = r * s[0];
  }

  // Reads z from saved, fills saved[2] with n.
  RNNFAST_HD static void forward_candidate(const V& gx_n, const V& gh_n, const V (&s)[1],
                                           V (&s_new)[1], V (&saved)[4]) {
    const V z = saved[1];
    const V n = tanh(gx_n + gh_n);
    s_new[0] = (V(1) - z) * n + z * s[0];
    saved[2] = n;
  }

  // Sets ds to its part through z·h.
  RNNFAST_HD static void backward_candidate(const V (&ds_new)[1], const V (&saved)[4],
                                            const V (&s)[1], V& dg_z, V& dg_n, V (&ds)[1]) {
    const V z = saved[1], n = saved[2];
    dg_z = sigmoid_backward(ds_new[0] * (s[0] - n), z);
    dg_n = tanh_backward(ds_new[0] * (V(1) - z), n);
    ds[0] = ds_new[0] * z;
  }

  // Adds to ds its part through u = r·h.
  RNNFAST_HD static void backward_reset(const V& du, const V (&saved)[4], const V (&s)[1], V& dg_r,
                                        V (&ds)[1]) {
    const V r = saved[0];
    dg_r = sigmoid_backward(du * s[0], r);
    ds[0] = ds[0] + du * r;
  }
};

}  // namespace rnnfast
