"""GRU, gates r, z, n: torch's, which resets after the recurrent product, and the paper's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import CellSpec, Product, States, StepWeights, Value


def gru(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    gx_r, gx_z, gx_n = gx.chunk(3, -1)
    gh_r, gh_z, gh_n = F.linear(h, w.w_hh, w.b_hh).chunk(3, -1)
    r = torch.sigmoid(gx_r + gh_r)
    z = torch.sigmoid(gx_z + gh_z)
    n = torch.tanh(gx_n + r * gh_n)
    return ((1 - z) * n + z * h,)


def gru_reset_before(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    hidden = h.shape[-1]
    gates, candidate = (2 * hidden, hidden)
    w_rz, w_n = w.w_hh.split((gates, candidate))
    b_rz, b_n = (None, None) if w.b_hh is None else w.b_hh.split((gates, candidate))
    gx_rz, gx_n = gx.split((gates, candidate), -1)
    r, z = torch.sigmoid(gx_rz + F.linear(h, w_rz, b_rz)).chunk(2, -1)
    n = torch.tanh(gx_n + F.linear(r * h, w_n, b_n))
    return ((1 - z) * n + z * h,)


_GATES = (Value("r", "sigmoid"), Value("z", "sigmoid"), Value("n", "tanh"))

GRU = CellSpec(
    "gru",
    gates=3,
    states=("h",),
    step=gru,
    products=(Product("w_hh", "h", (0, 1, 2)),),
    saved=(*_GATES, Value("gh_n")),
    torch_mode="GRU",
    own_product_gate=2,
    reads_h=True,
    wide_under_autocast=("h",),
    source="torch.nn.GRU: resets after the product",
)
GRU_RESET_BEFORE = CellSpec(
    "gru_reset_before",
    gates=3,
    states=("h",),
    step=gru_reset_before,
    products=(Product("w_hh", "h", (0, 1)), Product("w_hh", "u", (2,))),
    saved=(*_GATES, Value("u")),  # u = r·h
    reads_h=True,
    wide_under_autocast=("h",),
    source="Cho et al., arXiv:1406.1078: resets before the product",
)
