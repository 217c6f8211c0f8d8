"""MGU, gates f, n, as csrc/cells/mgu.h."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  the interpreter wants it in every kernel's module

from .math import sigmoid, sigmoid_backward, tanh, tanh_backward


@triton.jit
def mgu_forward_0(gx, gh, s, earlier):
    f = sigmoid(gx[0] + gh[0])
    return (f * s[0],), (f,)


@triton.jit
def mgu_forward_1(gx, gh, s, earlier):
    f = earlier[0]
    n = tanh(gx[0] + gh[0])
    return ((1.0 - f) * s[0] + f * n,), (n,)


@triton.jit
def mgu_backward_1(d, saved, s, left):
    f, n = saved[0], saved[1]
    dg_n = (tanh_backward(d[0] * f, n),)
    return dg_n, dg_n, (d[0] * (1.0 - f),), (d[0] * (n - s[0]),)


@triton.jit
def mgu_backward_0(d, saved, s, left):
    f = saved[0]
    dg_f = (sigmoid_backward(left[-1] + d[0] * s[0], f),)
    return dg_f, dg_f, (d[0] * f,), ()


FUNCTIONS = {"mgu": ((mgu_forward_0, mgu_forward_1), (mgu_backward_0, mgu_backward_1))}
