"""Elman's network, as csrc/cells/rnn.h. Saved: h', which is also the output."""

from __future__ import annotations

import triton
import triton.language as tl

from .math import relu, relu_backward, tanh, tanh_backward


@triton.jit
def rnn_tanh_forward(gx, gh, s, earlier):
    h = tanh(gx[0] + gh[0])
    return (h,), (h,)


@triton.jit
def rnn_tanh_backward(d, saved, s, left):
    dg = (tanh_backward(d[0], saved[0]),)
    return dg, dg, (tl.zeros_like(d[0]),), ()


@triton.jit
def rnn_relu_forward(gx, gh, s, earlier):
    h = relu(gx[0] + gh[0])
    return (h,), (h,)


@triton.jit
def rnn_relu_backward(d, saved, s, left):
    dg = (relu_backward(d[0], saved[0]),)
    return dg, dg, (tl.zeros_like(d[0]),), ()


FUNCTIONS = {
    "rnn_tanh": ((rnn_tanh_forward,), (rnn_tanh_backward,)),
    "rnn_relu": ((rnn_relu_forward,), (rnn_relu_backward,)),
}
