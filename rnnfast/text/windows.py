"""Minibatches of consecutive tokens.

Both kinds iterate as one epoch at a time and yield ``(x, y)``, int64 [T, B] each, ``y`` one token
ahead of ``x``. ``carries_state`` says whether a minibatch goes on where the one before it ended.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class _Windows:
    carries_state: bool

    def __init__(
        self, tokens: Tensor, *, batch_size: int, num_steps: int, generator: torch.Generator
    ) -> None:
        if batch_size < 1 or num_steps < 1:
            raise ValueError(
                f"batch_size and num_steps must be positive, got {batch_size} and {num_steps}"
            )
        if tokens.dim() != 1 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be int64 [N], got {tokens.dtype} {list(tokens.shape)}")
        needed = self._needed(batch_size, num_steps)
        if len(tokens) < needed:
            raise ValueError(
                f"the text has {len(tokens)} tokens; batch_size {batch_size} with num_steps "
                f"{num_steps} needs at least {needed}"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.generator = generator

    @staticmethod
    def _needed(batch_size: int, num_steps: int) -> int:
        """Tokens for one minibatch at the largest offset: offset + inputs + the last target."""
        return num_steps + batch_size * num_steps + 1

    def _random_offset(self) -> int:
        return int(torch.randint(self.num_steps + 1, (), generator=self.generator))


class SequentialWindows(_Windows):
    """Sequential partitioning: B rows side by side, each read from its start to its end.

    An epoch drops a random 0 ... ``num_steps`` tokens at the start, cuts the rest into
    ``batch_size`` rows and walks along them, ``num_steps`` at a time; tokens that don't fill a
    window are left out. Row b of a minibatch continues row b of the one before it.
    """

    carries_state = True

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        offset = self._random_offset()
        length = (len(self.tokens) - offset - 1) // self.batch_size
        inputs = self._rows(offset, length)
        targets = self._rows(offset + 1, length)
        for start in range(0, length - self.num_steps + 1, self.num_steps):
            stop = start + self.num_steps
            yield inputs[start:stop], targets[start:stop]

    def _rows(self, offset: int, length: int) -> Tensor:
        flat = self.tokens[offset : offset + self.batch_size * length]
        return flat.view(self.batch_size, length).t().contiguous()  # [length, B]


class RandomWindows(_Windows):
    """Random sampling: the text in windows of ``num_steps`` from a random offset, shuffled.

    Minibatches are unrelated, so the state starts from zero at each.
    """

    carries_state = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        offset = self._random_offset()
        count = (len(self.tokens) - offset - 1) // self.num_steps
        starts = torch.randperm(count, generator=self.generator) * self.num_steps + offset
        steps = torch.arange(self.num_steps)[:, None]
        for first in range(0, count - self.batch_size + 1, self.batch_size):
            at = steps + starts[first : first + self.batch_size]  # [T, B]
            yield self.tokens[at], self.tokens[at + 1]
