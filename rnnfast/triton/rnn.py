"""Elman's network, as csrc/cells/rnn.h. Saved: h', which is also the output."""

from __future__ import annotations

import triton
import triton.language as tl

from .math import relu, relu_backward, tanh, tanh_backward


@triton.jit
def rnn_tanh_forward(gx, gh, s):
    h = tanh(gx[0] + gh[0])
    return (h,), (h,)


@triton.jit
def rnn_tanh_backward(ds_new, saved, s):
    dg = (tanh_backward(ds_new[0], saved[0]),)
    return dg, dg, (tl.zeros_like(ds_new[0]),)


@triton.jit
def rnn_relu_forward(gx, gh, s):
    h = relu(gx[0] + gh[0])
    return (h,), (h,)


@triton.jit
def rnn_relu_backward(ds_new, saved, s):
    dg = (relu_backward(ds_new[0], saved[0]),)
    return dg, dg, (tl.zeros_like(ds_new[0]),)
