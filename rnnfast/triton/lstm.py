"""LSTM, gates i, f, g, o, states h and c, as csrc/cells/lstm.h.

With a projection, what it yields is m = o·tanh(c') and d[0] is its gradient; the product with W_hr
stands outside.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .math import sigmoid, sigmoid_backward, tanh, tanh_backward


@triton.jit
def lstm_forward(gx, gh, s, earlier):
    i = sigmoid(gx[0] + gh[0])
    f = sigmoid(gx[1] + gh[1])
    g = tanh(gx[2] + gh[2])
    o = sigmoid(gx[3] + gh[3])
    c = f * s[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


@triton.jit
def lstm_backward(d, saved, s, left):
    i, f, g, o = saved[0], saved[1], saved[2], saved[3]
    tanh_c = tanh(f * s[1] + i * g)
    dc = d[1] + tanh_backward(d[0] * o, tanh_c)
    dg = (
        sigmoid_backward(dc * g, i),
        sigmoid_backward(dc * s[1], f),
        tanh_backward(dc * i, g),
        sigmoid_backward(d[0] * tanh_c, o),
    )
    return dg, dg, (tl.zeros_like(dc), dc * f), ()


FUNCTIONS = {
    "lstm": ((lstm_forward,), (lstm_backward,)),
    "lstm_proj": ((lstm_forward,), (lstm_backward,)),
}
