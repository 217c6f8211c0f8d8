"""The RNN whose units see of the state only themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..own import cell
from ..spec import States, StepWeights

_PARAMS = {"u": ("H", nn.init.uniform_)}  # U(0, 1): |u| ≤ 1 holds the paper's bound for every T
_SOURCE = "Li et al., arXiv:1803.04831"


@cell(name="indrnn_relu", gates=1, recurrent=None, params=_PARAMS, source=_SOURCE)
def indrnn_relu(gx: Tensor, states: States, w: StepWeights) -> States:
    """h' = relu(W_ih x + b + u h), u a vector.

    The paper keeps |u| ≤ 2^(1/T) while it trains; that is left to the training loop.
    """
    (h,) = states
    return (torch.relu(gx + w.u * h),)


@cell(name="indrnn_tanh", gates=1, recurrent=None, params=_PARAMS, source=_SOURCE)
def indrnn_tanh(gx: Tensor, states: States, w: StepWeights) -> States:
    """h' = tanh(W_ih x + b + u h), u a vector."""
    (h,) = states
    return (torch.tanh(gx + w.u * h),)
