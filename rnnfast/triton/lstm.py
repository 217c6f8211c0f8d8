"""LSTM, gates i, f, g, o, states h and c, as csrc/cells/lstm.h.

With a projection, s_new[0] is m = o·tanh(c') and ds_new[0] is its gradient; the product with W_hr
stands outside.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .math import sigmoid, sigmoid_backward, tanh, tanh_backward


@triton.jit
def lstm_forward(gx, gh, s):
    i = sigmoid(gx[0] + gh[0])
    f = sigmoid(gx[1] + gh[1])
    g = tanh(gx[2] + gh[2])
    o = sigmoid(gx[3] + gh[3])
    c = f * s[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


@triton.jit
def lstm_backward(ds_new, saved, s):
    i, f, g, o = saved[0], saved[1], saved[2], saved[3]
    tanh_c = tanh(f * s[1] + i * g)
    dc = ds_new[1] + tanh_backward(ds_new[0] * o, tanh_c)
    dgx = (
        sigmoid_backward(dc * g, i),
        sigmoid_backward(dc * s[1], f),
        tanh_backward(dc * i, g),
        sigmoid_backward(ds_new[0] * tanh_c, o),
    )
    return dgx, dgx, (tl.zeros_like(dc), dc * f)


@triton.jit
def lstm_proj_forward(gx, gh, s):
    s_new, gates = lstm_forward(gx, gh, s)
    return s_new, (gates[0], gates[1], gates[2], gates[3], s_new[0])


@triton.jit
def lstm_proj_backward(ds_new, saved, s):
    return lstm_backward(ds_new, saved, s)
