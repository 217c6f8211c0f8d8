"""The GRU of DreamerV3, its recurrent weights block-diagonal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import block_linear
from ..own import cell
from ..spec import States, StepWeights

_ONES, _ZEROS = nn.init.ones_, nn.init.zeros_
_RECURRENT = "G, heads, H/heads, H/heads"
_SOURCE = "Hafner et al., arXiv:2301.04104, and its published code"


def _gates(gx: Tensor, h: Tensor, w: StepWeights) -> Tensor:
    return gx + block_linear(h, w.w_hh, w.b_hh)


def _step(gates: Tensor, h: Tensor) -> States:
    r, n, u = gates.chunk(3, -1)
    u = torch.sigmoid(u - 1)
    return (u * torch.tanh(torch.sigmoid(r) * n) + (1 - u) * h,)


@cell(
    name="block_gru",
    gates=3,
    params={"gain": ("G*H", _ONES)},
    recurrent=_RECURRENT,
    settings={"heads": 8},
    source=_SOURCE,
)
def block_gru(gx: Tensor, states: States, w: StepWeights) -> States:
    """Gates r, n, u of RMSNorm(W_ih x + b + W_hh h), W_hh block-diagonal by heads: r = σ(·),
    u = σ(· − 1), n = tanh(r ·); h' = u n + (1 − u) h.

    One norm over all gates, eps 1e-4. r multiplies the whole of n's argument, x's part too. The
    published world model puts further layers between h and these gates; they are left out.
    """
    (h,) = states
    gates = _gates(gx, h, w)
    return _step(F.rms_norm(gates, gates.shape[-1:], w.gain, 1e-4), h)


@cell(
    name="block_gru_layer_norm",
    gates=3,
    params={"gain": ("G*H", _ONES), "shift": ("G*H", _ZEROS)},
    recurrent=_RECURRENT,
    settings={"heads": 8},
    source=f"{_SOURCE} (dreamerv3 1.5, where heads is 1)",
)
def block_gru_layer_norm(gx: Tensor, states: States, w: StepWeights) -> States:
    """As ``block_gru`` with a layer norm, eps 1e-3."""
    (h,) = states
    gates = _gates(gx, h, w)
    return _step(F.layer_norm(gates, gates.shape[-1:], w.gain, w.shift, 1e-3), h)


@cell(
    name="block_gru_no_norm",
    gates=3,
    recurrent=_RECURRENT,
    settings={"heads": 8},
    source=_SOURCE,
)
def block_gru_no_norm(gx: Tensor, states: States, w: StepWeights) -> States:
    """As ``block_gru`` without a norm."""
    (h,) = states
    return _step(_gates(gx, h, w), h)
