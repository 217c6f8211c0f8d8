"""What autocast does to a layer: one rule for every way in (docs/migration.md).

float64 is left as it is, as torch's autocast leaves it. Otherwise the results have autocast's
dtype, but for states that torch's CPU kernels keep as wide as they came
(``CellSpec.wide_under_autocast``), and the scan is computed in the widest dtype of its results.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from .cells import CellSpec
from .surroundings import surroundings


class Cast(NamedTuple):
    """``computed``: the dtype of the scan; ``states``: that of each state as it is returned."""

    computed: torch.dtype
    states: tuple[torch.dtype, ...]


def cast_of(
    spec: CellSpec,
    device_type: str,
    low: torch.dtype | None,
    weight: torch.dtype,
    states: Sequence[torch.dtype],
) -> Cast | None:
    """What autocast to ``low`` (None: it is off) asks of a scan with such weights and initial
    states; None where it leaves the scan as it is."""
    if low is None or weight == torch.float64:
        return None
    wide = spec.wide_under_autocast if device_type == "cpu" else ()
    returned = tuple(
        torch.promote_types(low, dtype) if name in wide else low
        for name, dtype in zip(spec.states, states, strict=True)
    )
    return Cast(functools.reduce(torch.promote_types, returned), returned)


def cast_all(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """``tensors`` in ``dtype``. Raises RuntimeError for one that autocast does not touch."""
    for tensor in tensors:
        if tensor.dtype == torch.float64 or not tensor.is_floating_point():
            raise RuntimeError(
                f"autocast leaves {tensor.dtype} as it is, and it can't be mixed with the other "
                "dtypes among input, states and weights"
            )
    return [tensor.to(dtype) for tensor in tensors]


def without_autocast(device_type: str, is_on: bool | None = None) -> AbstractContextManager[object]:
    """A block without autocast: kernels compute in the dtype that they are given.

    ``is_on``: whether it is on here, where that was asked before.
    """
    if is_on is None:
        is_on = surroundings(device_type).autocast is not None
    if not is_on:
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
