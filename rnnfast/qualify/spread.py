"""What a GPU is qualified by: strategies, cells, ways of computing, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..cells import CELLS

Size = tuple[int, int, int]  # T, B, H
MATHS = ("float32", "tf32", "bfloat16", "float16")


class Way(NamedTuple):
    """A strategy of a backend, "" the one that its plan takes; ``variable`` demands it."""

    backend: str
    variable: str
    strategy: str


class Case(NamedTuple):
    """One direction of one layer, I = H."""

    cell: str
    math: str
    training: bool
    T: int
    B: int
    H: int


# Small H in one block, H that teams split, H that only products step by step take; one step.
FULL = ((40, 1, 64), (40, 8, 128), (40, 16, 256), (40, 16, 512), (20, 64, 1024), (1, 1, 256))
QUICK = ((20, 8, 128), (20, 16, 512))
STRATEGIES = {
    "cuda": ("RNNFAST_PLAN", ("stepwise", "resident", "cluster", "grid", "")),
    "triton": ("RNNFAST_TRITON_STRATEGY", ("stepwise", "resident", "")),
}


def ways(backend: str, like: str = "") -> list[Way]:
    """The strategies of a backend; ``like``: one that has the same."""
    variable, names = STRATEGIES[like or backend]
    return [Way(backend, variable, name) for name in names]


def cases(sizes: Sequence[Size]) -> Iterator[Case]:
    for cell in CELLS:
        for math in MATHS:
            for training in (True, False):
                for size in sizes:
                    yield Case(cell, math, training, *size)
