"""minLSTM and minGRU: gates of the input alone, so that h enters a step by one product of numbers.

``…_positive``: the candidate goes through ``_positive``, as in the version that the paper computes
in log space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..own import cell
from ..spec import States, StepWeights

_SOURCE = "Feng et al., arXiv:2410.01201"


def _positive(x: Tensor) -> Tensor:
    """x + 1/2 where x ≥ 0, else σ(x)."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def _lstm(f: Tensor, i: Tensor, g: Tensor, h: Tensor) -> States:
    """f' = σ(f) / (σ(f) + σ(i)) and i' = 1 − f', as functions of the difference of the logarithms:
    no gate that is 0 divides by 0."""
    d = F.logsigmoid(f) - F.logsigmoid(i)
    return (torch.sigmoid(d) * h + torch.sigmoid(-d) * g,)


@cell(name="min_lstm", gates=3, recurrent=None, source=f"{_SOURCE}, section 3.2")
def min_lstm(gx: Tensor, states: States, w: StepWeights) -> States:
    """Gates i, f, g of the input: h' = f/(f + i) h + i/(f + i) g, with i = σ(·), f = σ(·)."""
    i, f, g = gx.chunk(3, -1)
    return _lstm(f, i, g, *states)


@cell(name="min_lstm_positive", gates=3, recurrent=None, source=f"{_SOURCE}, appendix B")
def min_lstm_positive(gx: Tensor, states: States, w: StepWeights) -> States:
    """As ``min_lstm`` with a positive candidate: x + 1/2 where x ≥ 0, else σ(x)."""
    i, f, g = gx.chunk(3, -1)
    return _lstm(f, i, _positive(g), *states)


@cell(name="min_gru", gates=2, recurrent=None, source=f"{_SOURCE}, section 3.1")
def min_gru(gx: Tensor, states: States, w: StepWeights) -> States:
    """Gates z, n of the input: h' = (1 − z) h + z n, with z = σ(·).

    z is the paper's: what torch.nn's GRU would call 1 − z.
    """
    (h,) = states
    z, n = gx.chunk(2, -1)
    return (torch.sigmoid(-z) * h + torch.sigmoid(z) * n,)


@cell(name="min_gru_positive", gates=2, recurrent=None, source=f"{_SOURCE}, appendix B")
def min_gru_positive(gx: Tensor, states: States, w: StepWeights) -> States:
    """As ``min_gru`` with a positive candidate: x + 1/2 where x ≥ 0, else σ(x)."""
    (h,) = states
    z, n = gx.chunk(2, -1)
    return (torch.sigmoid(-z) * h + torch.sigmoid(z) * _positive(n),)
