"""The backend ``simt``: the CUDA backend's Python and the CUDA kernels, on CPU tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rnnfast.backends import registry
from rnnfast.backends.cuda import Cuda, Lanes, Mark

from .build import library


class Shuffled(Lanes):
    """Tasks run when the block ends, in any order that lanes and marks allow, drawn anew each time.

    ``waits`` is whether marks are heeded: a test switches it off to see that they matter.
    """

    waits = True
    seed = 0

    def __init__(self, lanes: int) -> None:
        self.lanes: list[list[tuple[Callable[[], None], Any, int]]] = [[] for _ in range(lanes)]
        self.given = 0
        self.order: list[int] = []

    def __enter__(self) -> Shuffled:
        return self

    def run(self, lane: int, task: Callable[[], None], after: Mark | None) -> Mark:
        self.given += 1
        self.lanes[lane].append((task, after, self.given))
        return self.given

    def __exit__(self, *_: object) -> None:
        Shuffled.seed += 1
        draw = random.Random(Shuffled.seed)
        while any(self.lanes):
            ready = [lane for lane in self.lanes if lane and self._may_run(lane[0][1])]
            task, _, mark = draw.choice(ready).pop(0)
            task()
            self.order.append(mark)

    def _may_run(self, after: Mark | None) -> bool:
        return not self.waits or after is None or after in self.order


class Simt(Cuda):
    name = "simt"
    device = "cpu"

    def __init__(self) -> None:
        torch.ops.load_library(library())
        self._missing = None

    @property
    def ops(self) -> Any:
        return torch.ops.rnnfast_simt

    def lanes(self, count: int, device: torch.device) -> Lanes:
        return Shuffled(count)

    def device_numbers(self, index: int) -> str:
        return "H100"

    def unusable(self) -> str | None:
        return None


@contextmanager
def registered() -> Iterator[Simt]:
    """Within the block, layers find the backend ``simt``."""
    backend = registry.BACKENDS["simt"] = Simt()
    try:
        yield backend
    finally:
        del registry.BACKENDS["simt"]
