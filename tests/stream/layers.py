"""Layers for the tests of Stream, and what one does in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import rnnfast
from rnnfast import _ext
from rnnfast.products import multiply
from rnnfast.recurrent import RecurrentLayer

MISSING = _ext.why_no_cpu()
# the instruction sets for which the layer's large products are ours (rnnfast/products/multiply.py)
OURS = MISSING is None and _ext.cpu().cpu_isa() in multiply.FASTER  # type: ignore[union-attr]

# and whether a bfloat16 layer's are of pairs
DOTS = MISSING is None and _ext.cpu().cpu_has_dots()  # type: ignore[union-attr]


def states_of(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def whole(layer: RecurrentLayer, x: Tensor, hx: Any = None) -> tuple[Tensor, list[Tensor]]:
    """y and the last states, by the backend ``cpu``."""
    with rnnfast.use_backend("cpu"), torch.no_grad():
        y, final = layer(x, hx)
    return y, states_of(final)


def in_parts(
    step: Callable[[Tensor], Tensor], x: Tensor, sizes: Sequence[int], time: int = 0
) -> Tensor:
    """x in blocks of so many steps; 0: one step, without the axis of time."""
    found, t = [], 0
    for size in sizes:
        if size == 0:
            found.append(step(x.select(time, t)).unsqueeze(time))
            t += 1
        else:
            found.append(step(x.narrow(time, t, size)))
            t += size
    assert t == x.shape[time]
    return torch.cat(found, time)
