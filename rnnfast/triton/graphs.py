"""Stepwise launches as one CUDA graph: T launches from Python cost more than most steps compute.

A call that was seen before, with the same sizes on the same stream, is captured on tensors that
belong to the graph; from then on its inputs are copied there, the graph runs, its outputs are
copied back. The few graphs used last are kept, with their memory. ``RNNFAST_TRITON_GRAPH=0``
forbids it. While the caller captures a graph of their own, the launches simply become part of it.

No GPU has run this yet; the tests run it with a capture that stands in for CUDA's.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

SWITCH = "RNNFAST_TRITON_GRAPH"
MOST_GRAPHS = 4
FEWEST_STEPS = 8  # below, copying costs about what launching does
Capture = Callable[[Callable[[], None]], Callable[[], None]]
Group = TypeVar("Group", bound=tuple)


def allowed(device: torch.device, T: int) -> bool:
    """Whether launches on this device may be captured now."""
    if device.type != "cuda" or T < FEWEST_STEPS or os.environ.get(SWITCH, "1") == "0":
        return False
    return not torch.cuda.is_current_stream_capturing()


def key_of(device: torch.device, tiling: Any, groups: Sequence[tuple], *more: Any) -> tuple:
    """What makes two calls the same: everything but the tensors' values and addresses."""
    facts: list[Any] = [tiling, *more, device]
    if device.type == "cuda":
        facts.append(torch.cuda.current_stream(device).cuda_stream)
    for group in groups:
        for item in group:
            is_tensor = isinstance(item, Tensor)
            facts.append((tuple(item.shape), item.dtype) if is_tensor else item)
    return tuple(facts)


class Graphs:
    """The graphs of a process. ``capture(work)`` runs ``work`` once and returns what repeats it."""

    def __init__(self, capture: Capture | None = None) -> None:
        self._capture = capture or _cuda_capture
        self._kept: OrderedDict[tuple, _Captured | None] = OrderedDict()
        self._lock = threading.Lock()

    def run(
        self,
        key: tuple,
        work: Callable[..., None],
        inputs: Sequence[tuple],
        outputs: Sequence[tuple],
    ) -> None:
        """``work(*inputs, *outputs)``: by a graph from the second call with this key on.

        Every tensor of the two is copied in, so that ``work`` may read outputs too; those of
        ``outputs`` are copied back.
        """
        with self._lock:
            seen = key in self._kept
            captured = self._kept.pop(key, None)
            if seen and captured is None:
                captured = _Captured(self._capture, work, inputs, outputs)
            self._kept[key] = captured
            while len(self._kept) > MOST_GRAPHS:
                self._kept.popitem(last=False)
            if captured is not None:
                captured.repeat(inputs, outputs)
                return
        work(*inputs, *outputs)


class _Captured:
    """One graph and the tensors that it works on."""

    def __init__(
        self,
        capture: Capture,
        work: Callable[..., None],
        inputs: Sequence[tuple],
        outputs: Sequence[tuple],
    ) -> None:
        self.inputs = [_twins(group) for group in inputs]
        self.outputs = [_twins(group) for group in outputs]
        own = (*self.inputs, *self.outputs)
        self.replay = capture(lambda: work(*own))

    def repeat(self, inputs: Sequence[tuple], outputs: Sequence[tuple]) -> None:
        for own, given in zip((*self.inputs, *self.outputs), (*inputs, *outputs), strict=True):
            _copy(own, given)
        self.replay()
        for given, own in zip(outputs, self.outputs, strict=True):
            _copy(given, own)


def _twins(group: Group) -> Group:
    """The same named tuple with tensors of its own, of the same values."""
    twins = [item.clone() if isinstance(item, Tensor) else item for item in group]
    return type(group)(*twins)


def _copy(into: tuple, source: tuple) -> None:
    for to, item in zip(into, source, strict=True):
        if isinstance(to, Tensor):
            to.copy_(item)


def _cuda_capture(work: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


GRAPHS = Graphs()
