"""How well a language model does by how much it has read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .generate import evaluating
from .model import RNNLM
from .place import Place
from .windows import EveryWindow

BATCH = 512


@torch.no_grad()
def by_position(model: RNNLM, tokens: Tensor, num_steps: int, place: Place) -> Tensor:
    """Mean cross-entropy (natural log) float64 [T] of the character after 1 ... T characters.

    A window begins at every position of ``tokens`` int64 [N], each from a zero state.

    Raises:
        ValueError: a bidirectional layer, which has read what it should name; a text shorter than
            a window.
    """
    if model.spec.bidirectional:
        raise ValueError("a bidirectional layer has no perplexity of the next character")
    windows = EveryWindow(tokens, batch_size=BATCH, num_steps=num_steps, generator=None)
    total = torch.zeros(num_steps, dtype=torch.float64, device=place.device)
    count = 0
    with evaluating(model), place.precision():
        for x, y in windows:
            logits, _ = model(x.to(place.device), model.begin_state(x.shape[1]))
            losses = F.cross_entropy(
                logits.float().flatten(0, 1), y.to(place.device).flatten(), reduction="none"
            )
            total += losses.view_as(y).double().sum(1)
            count += y.shape[1]
    return total / count
