"""LSTM, gates i, f, g, o, without and with a projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import CellSpec, Product, States, StepWeights, Value


def lstm(gx: Tensor, states: States, w: StepWeights) -> States:
    h, c = states
    i, f, g, o = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_proj(gx: Tensor, states: States, w: StepWeights) -> States:
    assert w.w_hr is not None
    m, c = lstm(gx, states, w)
    return F.linear(m, w.w_hr), c


_GATES = (Value("i", "sigmoid"), Value("f", "sigmoid"), Value("g", "tanh"), Value("o", "sigmoid"))
_RECURRENT = Product("w_hh", "h", (0, 1, 2, 3))

LSTM = CellSpec(
    "lstm",
    gates=4,
    states=("h", "c"),
    step=lstm,
    products=(_RECURRENT,),
    saved=_GATES,
    torch_mode="LSTM",
    source="torch.nn.LSTM",
)
LSTM_PROJ = CellSpec(
    "lstm_proj",
    gates=4,
    states=("h", "c"),
    step=lstm_proj,
    products=(_RECURRENT, Product("w_hr", "m")),
    saved=(*_GATES, Value("m")),
    torch_mode="LSTM",
    wide_under_autocast=("c",),
    source="torch.nn.LSTM(proj_size=…); Sak et al., arXiv:1402.1128",
)
