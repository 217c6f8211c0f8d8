"""GRU, gates r, z, n, as csrc/cells/gru.h: reset after the product, and before it."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  the interpreter wants it in every kernel's module

from .math import sigmoid, sigmoid_backward, tanh, tanh_backward


@triton.jit
def gru_forward(gx, gh, s, earlier):
    r = sigmoid(gx[0] + gh[0])
    z = sigmoid(gx[1] + gh[1])
    n = tanh(gx[2] + r * gh[2])
    return ((1.0 - z) * n + z * s[0],), (r, z, n, gh[2])


@triton.jit
def gru_backward(d, saved, s, left):
    r, z, n, q = saved[0], saved[1], saved[2], saved[3]
    dn = tanh_backward(d[0] * (1.0 - z), n)
    dg_r = sigmoid_backward(dn * q, r)
    dg_z = sigmoid_backward(d[0] * (s[0] - n), z)
    return (dg_r, dg_z, dn), (dg_r, dg_z, dn * r), (d[0] * z,), ()


@triton.jit
def gru_reset_before_forward_0(gx, gh, s, earlier):
    r = sigmoid(gx[0] + gh[0])
    z = sigmoid(gx[1] + gh[1])
    return (r * s[0],), (r, z)


@triton.jit
def gru_reset_before_forward_1(gx, gh, s, earlier):
    z = earlier[1]
    n = tanh(gx[0] + gh[0])
    return ((1.0 - z) * n + z * s[0],), (n,)


@triton.jit
def gru_reset_before_backward_1(d, saved, s, left):
    z, n = saved[1], saved[2]
    dg_z = sigmoid_backward(d[0] * (s[0] - n), z)
    dg_n = (tanh_backward(d[0] * (1.0 - z), n),)
    return dg_n, dg_n, (d[0] * z,), (dg_z,)


@triton.jit
def gru_reset_before_backward_0(d, saved, s, left):
    r = saved[0]
    dg_r = (sigmoid_backward(d[0] * s[0], r),)
    return dg_r, dg_r, (d[0] * r,), ()


FUNCTIONS = {
    "gru": ((gru_forward,), (gru_backward,)),
    "gru_reset_before": (
        (gru_reset_before_forward_0, gru_reset_before_forward_1),
        (gru_reset_before_backward_0, gru_reset_before_backward_1),
    ),
}
