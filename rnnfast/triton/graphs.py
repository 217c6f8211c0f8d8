"""Stepwise launches as one CUDA graph: T launches from Python cost more than most steps compute.

A call that was seen before, with the same sizes on the same stream, is captured on tensors that
belong to the graph; from then on what it reads is copied there, the graph runs, its outputs are
copied back. The few graphs used last are kept, with their memory. ``RNNFAST_TRITON_GRAPH=0``
forbids it. While the caller captures a graph of their own, the launches simply become part of it.

No GPU has run this yet; the tests run it on devices that stand in for CUDA's.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .device import captured, capturing, device_of, stream_of

SWITCH = "RNNFAST_TRITON_GRAPH"
MOST_GRAPHS = 4
FEWEST_STEPS = 8  # below, copying costs about what launching does


def allowed(y: Tensor) -> bool:
    """Whether the launches of a scan with these outputs [T, B, P] may be captured now."""
    if y.device.type != "cuda" or y.numel() == 0 or y.shape[0] < FEWEST_STEPS:
        return False
    return os.environ.get(SWITCH, "1") != "0" and not capturing(y.device)


class Graphs:
    """The graphs of a process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple, _Captured | None] = OrderedDict()
        self._lock = threading.Lock()

    def run(
        self,
        what: tuple,
        work: Callable[..., None],
        inputs: Sequence[tuple],
        outputs: Sequence[tuple],
        changed: Sequence[Tensor],
    ) -> None:
        """``work(*inputs, *outputs)``: by a graph from the second such call on.

        ``what``: facts that tell this work from others. ``changed``: those of ``outputs`` whose
        values ``work`` reads, too; of the others it writes all before it reads any.
        """
        read = [[any(item is one for one in changed) for item in group] for group in outputs]
        key = _key_of(what, (*inputs, *outputs))
        with self._lock:
            seen = key in self._kept
            kept = self._kept.pop(key, None)
            if seen and kept is None:
                # neither inference tensors, which only inference may write to, nor recorded ones
                with torch.inference_mode(False), torch.no_grad():
                    kept = _Captured(work, inputs, outputs, read)
            self._kept[key] = kept
            while len(self._kept) > MOST_GRAPHS:
                self._kept.popitem(last=False)
            if kept is not None:
                kept.repeat(inputs, outputs)
                return
        work(*inputs, *outputs)


def _key_of(what: tuple, groups: Sequence[tuple]) -> tuple:
    """What makes two calls the same: everything but the tensors' values and addresses."""
    items = [item for group in groups for item in group]
    device = device_of(items)
    facts = [(tuple(i.shape), i.dtype) if isinstance(i, Tensor) else i for i in items]
    return (*what, device, stream_of(device), *facts)


class _Captured:
    """One graph and the tensors that it works on."""

    def __init__(
        self,
        work: Callable[..., None],
        inputs: Sequence[tuple],
        outputs: Sequence[tuple],
        read: Sequence[Sequence[bool]],
    ) -> None:
        """``read``: which of the outputs are."""
        self.read = [*([True] * len(group) for group in inputs), *read]
        own = [
            _twins(group, copied)
            for group, copied in zip((*inputs, *outputs), self.read, strict=True)
        ]
        self.inputs, self.outputs = own[: len(inputs)], own[len(inputs) :]
        work(*own)  # the addresses may be aligned otherwise than the caller's: other kernels
        self.replay = captured(device_of(self.outputs[0]), lambda: work(*own))

    def repeat(self, inputs: Sequence[tuple], outputs: Sequence[tuple]) -> None:
        own, given = (*self.inputs, *self.outputs), (*inputs, *outputs)
        for into, source, which in zip(own, given, self.read, strict=True):
            _copy(itertools.compress(into, which), itertools.compress(source, which))
        self.replay()
        for into, source in zip(outputs, self.outputs, strict=True):
            _copy(into, source)


def _twins(group: Sequence[Any], copied: Sequence[bool]) -> Any:
    """The same tuple, named or not, with tensors of its own, of the same values where they are
    ``copied``."""
    twins = [
        (item.clone() if also else torch.empty_like(item)) if isinstance(item, Tensor) else item
        for item, also in zip(group, copied, strict=True)
    ]
    return getattr(group, "_make", tuple)(twins)


def _copy(into: Iterable[Any], source: Iterable[Any]) -> None:
    for to, item in zip(into, source, strict=True):
        if isinstance(to, Tensor):
            to.copy_(item)


GRAPHS = Graphs()
