"""The light GRU: without a reset gate, with relu."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..own import cell
from ..spec import States, StepWeights


@cell(name="ligru", gates=2, source="Ravanelli et al., arXiv:1803.10225")
def ligru(gx: Tensor, states: States, w: StepWeights) -> States:
    """Gates z, n: z = σ(·), n = relu(·) of W_ih x + W_hh h; h' = z h + (1 − z) n.

    Left out: the batch normalisation of W_ih x, which is no part of the recurrence and belongs
    before it (in evaluation it is a scale and a shift, which fit into w_ih and b_ih).
    """
    (h,) = states
    z, n = (gx + F.linear(h, w.w_hh, w.b_hh)).chunk(2, -1)
    z = torch.sigmoid(z)
    return (z * h + (1 - z) * torch.relu(n),)
