"""sLSTM: exponential gates, a normaliser, and a recurrence within heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import block_linear
from ..own import cell
from ..spec import States, StepWeights


@cell(
    name="slstm",
    gates=4,
    states=("h", "c", "n", "m"),
    recurrent="G, heads, H/heads, H/heads",
    settings={"heads": 4},
    source="Beck et al., arXiv:2405.04517, eqs. 8 to 17",
)
def slstm(gx: Tensor, states: States, w: StepWeights) -> States:
    """Gates i, f, g, o, each head's of its own part of h: i = exp(·), f = σ(·), g = tanh(·) (the
    paper's z), o = σ(·); c' = f c + i g; n' = f n + i; h' = o c' / n'.

    c and n are kept divided by exp(m), so that nothing overflows: m' = max(log f + m, log i). All
    states begin at 0, and n = 0 says that there is no past: then m' = log i, as in the published
    code (xlstm 2.0), so that n' is never below 1 later, and f, which may be above m' there, is cut
    off: it multiplies 0. After a reset it is the same.
    """
    h, c, n, m = states
    i, f, g, o = (gx + block_linear(h, w.w_hh, w.b_hh)).chunk(4, -1)
    f = F.logsigmoid(f) + m
    m = torch.where(n == 0, i, torch.maximum(f, i))
    i, f = torch.exp(i - m), torch.exp((f - m).clamp(max=0))
    c = f * c + i * torch.tanh(g)
    n = f * n + i
    return torch.sigmoid(o) * c / n, c, n, m
