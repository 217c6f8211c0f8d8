"""GRU, gates r, z, n, as csrc/cells/gru.h: reset after the product, and before it."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  the interpreter wants it in every kernel's module

from .math import sigmoid, sigmoid_backward, tanh, tanh_backward


@triton.jit
def gru_forward(gx, gh, s):
    r = sigmoid(gx[0] + gh[0])
    z = sigmoid(gx[1] + gh[1])
    n = tanh(gx[2] + r * gh[2])
    return ((1.0 - z) * n + z * s[0],), (r, z, n, gh[2])


@triton.jit
def gru_backward(ds_new, saved, s):
    r, z, n, q = saved[0], saved[1], saved[2], saved[3]
    dn = tanh_backward(ds_new[0] * (1.0 - z), n)
    dg_r = sigmoid_backward(dn * q, r)
    dg_z = sigmoid_backward(ds_new[0] * (s[0] - n), z)
    return (dg_r, dg_z, dn), (dg_r, dg_z, dn * r), (ds_new[0] * z,)


@triton.jit
def gru_reset_before_forward_reset(gx, gh, s):
    """(r, z, u = r·h)."""
    r = sigmoid(gx[0] + gh[0])
    z = sigmoid(gx[1] + gh[1])
    return r, z, r * s[0]


@triton.jit
def gru_reset_before_forward_candidate(gx_n, gh_n, z, s):
    """(h', n)."""
    n = tanh(gx_n + gh_n)
    return (1.0 - z) * n + z * s[0], n


@triton.jit
def gru_reset_before_backward_candidate(ds_new, z, n, s):
    """(dg_z, dg_n, the part of ds through z·h)."""
    dg_z = sigmoid_backward(ds_new * (s[0] - n), z)
    dg_n = tanh_backward(ds_new * (1.0 - z), n)
    return dg_z, dg_n, ds_new * z


@triton.jit
def gru_reset_before_backward_reset(du, r, s):
    """(dg_r, the part of ds through u = r·h)."""
    return sigmoid_backward(du * s[0], r), du * r
