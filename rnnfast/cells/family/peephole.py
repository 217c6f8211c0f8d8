"""The LSTM whose gates see the cell state."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..own import cell
from ..spec import States, StepWeights


@cell(
    name="peephole_lstm",
    gates=4,
    states=("h", "c"),
    params={"w_ci": "H", "w_cf": "H", "w_co": "H"},
    source="Gers et al., JMLR 3 (2002), 115; as Graves writes it, arXiv:1308.0850, eqs. 7 to 11",
)
def peephole_lstm(gx: Tensor, states: States, w: StepWeights) -> States:
    """An LSTM, gates i, f, g, o, with i and f also of w_ci c and w_cf c, and o of w_co c'.

    Of Gers et al. the connections; the squashing functions are tanh, as Graves and everybody after
    him have them, where theirs are the identity and a scaled logistic function.
    """
    h, c = states
    i, f, g, o = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
    i, f = torch.sigmoid(i + w.w_ci * c), torch.sigmoid(f + w.w_cf * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(o + w.w_co * c) * torch.tanh(c), c
