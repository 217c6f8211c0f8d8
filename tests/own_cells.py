"""Cells of one's own for the tests: some that torch.nn has too, some with states and parameters of
other kinds."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import rnnfast


@rnnfast.cell(gates=4, states=("h", "c"))
def lstm(gx, states, w):
    h, c = states
    i, f, g, o = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@rnnfast.cell(gates=1)
def rnn_tanh(gx, states, w):
    return (torch.tanh(gx + F.linear(states[0], w.w_hh, w.b_hh)),)


@rnnfast.cell(gates=1)
def rnn_relu(gx, states, w):
    return (torch.relu(gx + F.linear(states[0], w.w_hh, w.b_hh)),)


@rnnfast.cell(gates=3)
def gru(gx, states, w):
    (h,) = states
    gx_r, gx_z, gx_n = gx.chunk(3, -1)
    gh_r, gh_z, gh_n = F.linear(h, w.w_hh, w.b_hh).chunk(3, -1)
    r, z = torch.sigmoid(gx_r + gh_r), torch.sigmoid(gx_z + gh_z)
    n = torch.tanh(gx_n + r * gh_n)
    return ((1 - z) * n + z * h,)


@rnnfast.cell(gates=4, states=("h", "c"), params={"w_ci": "H", "w_cf": "H", "w_co": "H"})
def peephole(gx, states, w):
    h, c = states
    i, f, g, o = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
    i, f = torch.sigmoid(i + w.w_ci * c), torch.sigmoid(f + w.w_cf * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + w.w_co * c) * torch.tanh(c), c


@rnnfast.cell(
    gates=2, states=("h", "s", "n"), params={"mix": ("H, H", torch.nn.init.eye_)}, recurrent=None
)
def three_states(gx, states, w):
    """No w_hh; a matrix of its own, and three states."""
    h, s, n = states
    i, f = gx.chunk(2, -1)
    f = torch.sigmoid(f)
    s = f * s + (1 - f) * torch.tanh(i + F.linear(h, w.mix))
    n = f * n + (1 - f)
    return s / (1 + n.abs()), s, n


@rnnfast.cell(gates=1, recurrent="heads, H/heads, H/heads", settings={"heads": 2})
def heads(gx, states, w):
    """An RNN whose w_hh is block-diagonal."""
    (h,) = states
    blocks = h.unflatten(-1, (w.w_hh.shape[0], -1))
    product = torch.einsum("bki,koi->bko", blocks, w.w_hh).flatten(-2)
    return (torch.tanh(gx + product + (0 if w.b_hh is None else w.b_hh)),)
