"""Minibatches of consecutive tokens, as data sets of torch.utils.data.

All kinds iterate as one epoch at a time and yield ``(x, y)``, int64 [T, B] each, ``y`` one token
ahead of ``x``. ``carries_state`` says whether a minibatch goes on where the one before it ended.
A ``generator`` of None, for validation, takes the tokens in their order, from the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

Batch = tuple[Tensor, Tensor]


class Windows(IterableDataset[Batch]):
    """What all kinds share; raises ValueError for bad sizes and a text that is too short."""

    carries_state: bool

    def __init__(
        self, tokens: Tensor, *, batch_size: int, num_steps: int, generator: torch.Generator | None
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

    def __iter__(self) -> Iterator[Batch]:
        raise TypeError("Windows is what the kinds of windows share")

    def _random_offset(self) -> int:
        if self.generator is None:
            return 0
        return int(torch.randint(self.num_steps + 1, (), generator=self.generator, device="cpu"))


class SequentialWindows(Windows):
    """Sequential partitioning: B rows side by side, each read from its start to its end.

    An epoch drops a random 0 ... ``num_steps`` tokens at the start, cuts the rest into
    ``batch_size`` rows and walks along them, ``num_steps`` at a time; tokens that don't fill a
    window are left out. Row b of a minibatch continues row b of the one before it.
    """

    carries_state = True

    def __iter__(self) -> Iterator[Batch]:
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


class RandomWindows(Windows):
    """Random sampling: the text in windows of ``num_steps`` from a random offset, shuffled.

    Minibatches are unrelated, so the state starts from zero at each.
    """

    carries_state = False

    def __iter__(self) -> Iterator[Batch]:
        offset = self._random_offset()
        count = (len(self.tokens) - offset - 1) // self.num_steps
        order = torch.arange(count, device="cpu")
        if self.generator is not None:
            order = torch.randperm(count, generator=self.generator, device="cpu")
        starts = order * self.num_steps + offset
        steps = torch.arange(self.num_steps, device="cpu")[:, None]
        for first in range(0, count - self.batch_size + 1, self.batch_size):
            at = steps + starts[first : first + self.batch_size]  # [T, B]
            yield self.tokens[at], self.tokens[at + 1]


class WindowAtEveryPosition(Dataset[Batch]):
    """Window i, of T + 1 tokens, begins at token i: a data set for torch's DataLoader.

    Raises:
        ValueError: the text is shorter than a window.
    """

    def __init__(self, tokens: Tensor, num_steps: int) -> None:
        if len(tokens) < num_steps + 1:
            raise ValueError(f"the text has {len(tokens)} tokens; a window has {num_steps + 1}")
        self.windows = tokens.unfold(0, num_steps + 1, 1)  # [N - T, T + 1], no copy

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Batch:
        """x, y int64 [T]."""
        return self.windows[index, :-1], self.windows[index, 1:]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Rows of T + 1 for a whole minibatch at once, which DataLoader asks for."""
        return self.windows[torch.as_tensor(indices)]


class EveryWindow(Windows):
    """A window at every position, in shuffled minibatches; the last one may be smaller."""

    carries_state = False

    def __init__(
        self, tokens: Tensor, *, batch_size: int, num_steps: int, generator: torch.Generator | None
    ) -> None:
        super().__init__(tokens, batch_size=batch_size, num_steps=num_steps, generator=generator)
        self.loader: DataLoader[Batch] = DataLoader(
            WindowAtEveryPosition(tokens, num_steps),
            batch_size,
            shuffle=generator is not None,
            generator=generator,
            collate_fn=_time_first,
        )

    @staticmethod
    def _needed(batch_size: int, num_steps: int) -> int:
        return num_steps + 1

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


def _time_first(rows: Any) -> Batch:
    """Of the tensor that ``__getitems__`` gave."""
    columns = rows.t()
    return columns[:-1].contiguous(), columns[1:].contiguous()


IGNORED = -100
"""A target that no loss is taken of, as in torch's cross_entropy."""


class FillIn(IterableDataset[Batch]):
    """Some tokens of each window are hidden (read as ``<unk>``) and are the only targets.

    Args:
        windows: what is hidden in; each minibatch hides others, drawn from ``generator``.
        probability: that a token is hidden.
    """

    carries_state = False

    def __init__(
        self, windows: Windows, generator: torch.Generator, probability: float = 0.15
    ) -> None:
        self.windows, self.generator, self.probability = windows, generator, probability

    def __iter__(self) -> Iterator[Batch]:
        for x, _ in self.windows:
            noise = torch.rand(x.shape, generator=self.generator, device="cpu")
            hidden = noise < self.probability
            hidden[0, 0] = True  # so that no minibatch is without a target
            yield x.masked_fill(hidden, 0), x.masked_fill(~hidden, IGNORED)


class FillInAlike(FillIn):
    """`FillIn` that hides the same tokens in every epoch: for validation."""

    def __init__(self, windows: Windows, seed: int, probability: float = 0.15) -> None:
        super().__init__(windows, torch.Generator(), probability)
        self.seed = seed

    def __iter__(self) -> Iterator[Batch]:
        self.generator.manual_seed(self.seed)
        return super().__iter__()


KINDS: dict[str, type[Windows]] = {
    "sequential": SequentialWindows,
    "random": RandomWindows,
    "every": EveryWindow,
}
