"""Choosing the next token from a model's logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampler:
    """How a token is chosen from p = softmax(logits).

    In this order: q ∝ p^(alpha / temperature); then the ``top_k`` likeliest stay (0: all); then the
    fewest whose q adds up to ``top_p``; then one is drawn from what is left.

    Attributes:
        temperature: above 1 evens p out, below 1 sharpens it; 0 takes the likeliest (greedy).
        alpha: sharpens p by its power; alpha = 1 / temperature is the same thing.

    Raises:
        ValueError: a number outside its range.
    """

    temperature: float = 1.0
    alpha: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 or more and finite, got {self.temperature}")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, got {self.alpha}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from: [..., V], of logits [..., V]."""
        if self.temperature == 0:
            likeliest = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter_(-1, likeliest, 1.0)
        logits = logits * (self.alpha / self.temperature)
        if self.top_k:
            kept = logits.topk(min(self.top_k, logits.shape[-1])).indices
            outside = torch.ones_like(logits, dtype=torch.bool).scatter_(-1, kept, False)
            logits = logits.masked_fill(outside, -math.inf)
        p = torch.softmax(logits, -1)
        if self.top_p < 1:
            ranked, order = p.sort(-1, descending=True)
            before = ranked.cumsum(-1) - ranked  # what the likelier ones add up to
            dropped = torch.zeros_like(before, dtype=torch.bool)
            dropped.scatter_(-1, order, before >= self.top_p)
            p = p.masked_fill(dropped, 0.0)
            p = p / p.sum(-1, keepdim=True)
        return p

    def pick(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """int64 [B], of logits [B, V]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        drawn = torch.multinomial(self.probabilities(logits), 1, generator=generator)
        return drawn.squeeze(-1)


GREEDY = Sampler(temperature=0.0)
