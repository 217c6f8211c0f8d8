"""MGU, gates f, n: a GRU whose one gate both forgets and updates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import CellSpec, Product, States, StepWeights, Value


def mgu(gx: Tensor, states: States, w: StepWeights) -> States:
    (h,) = states
    gx_f, gx_n = gx.chunk(2, -1)
    w_f, w_n = w.w_hh.chunk(2)
    b_f, b_n = (None, None) if w.b_hh is None else w.b_hh.chunk(2)
    f = torch.sigmoid(gx_f + F.linear(h, w_f, b_f))
    n = torch.tanh(gx_n + F.linear(f * h, w_n, b_n))
    return ((1 - f) * h + f * n,)


MGU = CellSpec(
    "mgu",
    gates=2,
    states=("h",),
    step=mgu,
    products=(Product("w_hh", "h", (0,)), Product("w_hh", "u", (1,))),
    saved=(Value("f", "sigmoid"), Value("n", "tanh"), Value("u")),  # u = f·h
    reads_h=True,
    wide_under_autocast=("h",),
    source="Zhou et al., arXiv:1603.09420: the minimal gated unit",
)
