"""The LSTM that forgets as much as it takes in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..own import cell
from ..spec import States, StepWeights


@cell(
    name="coupled_lstm",
    gates=3,
    states=("h", "c"),
    source="Greff et al., arXiv:1503.04069, CIFG: coupled input and forget gate",
)
def coupled_lstm(gx: Tensor, states: States, w: StepWeights) -> States:
    """An LSTM with f = 1 − i, gates i, g, o: c' = (1 − i) c + i g; h' = o tanh(c').

    Without peephole connections, which the paper's variants have.
    """
    h, c = states
    i, g, o = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(3, -1)
    i = torch.sigmoid(i)
    c = (1 - i) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
