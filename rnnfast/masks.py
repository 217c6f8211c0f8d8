"""Recurrent dropout, zoneout and weight dropout: their options, and their masks.

Masks are drawn here by torch's generator, layer by layer and direction by direction, and reach the
kernels as tensors: every backend has the same ones, and a seed repeats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cells import CELLS, CellSpec
from .cells.masked import masked_cell
from .cells.trial import check_step
from .problem import Scan, ScanResult, Stack, wide
from .products.projection import project_input
from .rules import without_padding
from .surroundings import constant_while_tracing

Zoneout = float | Sequence[float]


class Masked(NamedTuple):
    """The cell with masks that a stack runs, by its name, and in what dtype."""

    cell: str
    dtype: torch.dtype


def check_probability(name: str, value: Any) -> float:
    """``value``. Raises TypeError, ValueError unless it is a number in [0, 1]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} should be a number in [0, 1], got: {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} should be in [0, 1], got: {value}")
    return value


def zoneout_of(spec: CellSpec, value: Zoneout) -> tuple[float, ...]:
    """A probability for each state, () where all are 0.

    Raises TypeError, ValueError for what is neither a probability nor one for each state.
    """
    each = tuple(value) if isinstance(value, (tuple, list)) else (value,) * len(spec.states)
    if len(each) != len(spec.states):
        names = ", ".join(spec.states)
        raise ValueError(f"zoneout should be a number or one for each of {names}, got: {value!r}")
    found = tuple(check_probability("zoneout", p) for p in each)
    return found if any(found) else ()


def check_cell(
    spec: CellSpec,
    H: int,
    P: int,
    bias: bool,
    weight: Any,
    recurrent_dropout: float,
    zoneout: tuple[float, ...],
) -> None:
    """Raises ValueError, StepError where the cell can't have such masks. ``weight``: any of it."""
    if recurrent_dropout == 0 and not zoneout:
        return
    zoned = tuple(p != 0 for p in zoneout) or (False,) * len(spec.states)
    own = CELLS[masked_cell(spec.name, P, bias, recurrent_dropout != 0, zoned)]
    if any(zoned):  # of evaluation, too: a tracer is to find in CELLS what it looks for
        masked_cell(spec.name, P, bias, False, zoned)
    if spec.own:
        check_step(own, H, bias, wide(weight.dtype), weight.device.type)


def masked(stack: Stack, dtype: torch.dtype) -> Masked | None:
    """What runs in place of the stack's cell, where a call has masks."""
    recurrent = stack.training and stack.recurrent_dropout != 0
    if not recurrent and not stack.zoneout:
        return None
    zoned = tuple(p != 0 for p in stack.zoneout) or (False,) * len(CELLS[stack.cell].states)
    name = _name(stack.cell, stack.output_size, stack.has_bias, recurrent, zoned)
    return Masked(name, wide(dtype))


@constant_while_tracing
def _name(cell: str, P: int, bias: bool, recurrent: bool, zoned: tuple[bool, ...]) -> str:
    return masked_cell(cell, P, bias, recurrent, zoned)


def with_masks(scan: Scan, stack: Stack, chosen: Masked) -> Scan:
    """``scan``, of the stack's own cell, as one of the cell with masks, which are drawn."""
    scan = without_padding(scan).to(chosen.dtype)
    gates = project_input(scan)
    T, B = gates.shape[:2]
    H, widths = stack.hidden_size, scan.spec.state_widths(stack.output_size, stack.hidden_size)
    parts = [gates]
    if stack.training and stack.recurrent_dropout != 0:  # one for each sequence
        mask = F.dropout(gates.new_ones(B, widths[0]), stack.recurrent_dropout)
        parts.append(_widened(mask, H).expand(T, -1, -1))
    for p, width in zip(stack.zoneout, widths, strict=False):
        if p != 0:  # trained with a mask for each step, in evaluation with its expectation
            odds = gates.new_full((T, B, width), p)
            parts.append(_widened(torch.bernoulli(odds) if stack.training else odds, H))
    names = scan.spec.weight_names(scan.kind, scan.has_bias)
    weights = [
        weight
        for name, weight in zip(names, scan.weights, strict=True)
        if name not in ("w_ih", "b_ih")
    ]
    return Scan(
        chosen.cell,
        "gates",
        torch.cat(parts, -1),
        [_widened(state, H) for state in scan.states],
        weights,
        scan.lengths,
        scan.resets,
        scan.options,
    )


def without_zeros(result: ScanResult, stack: Stack) -> ScanResult:
    """What the stack's own cell returns: of a projected output its P units."""
    P = stack.output_size
    if stack.hidden_size == P:
        return result
    h, *others = result.final
    return ScanResult(
        result.y[..., :P].contiguous(), [h[:, :P].contiguous(), *others], result.trace
    )


def _widened(values: Tensor, H: int) -> Tensor:
    """To H units, with zeros behind them (cells/masked.py)."""
    return values if values.shape[-1] == H else F.pad(values, (0, H - values.shape[-1]))


def dropped(weights: list[list[Tensor]], index: int, p: float) -> list[list[Tensor]]:
    """``weights`` of each layer and direction with a mask on that at ``index``."""
    return [[F.dropout(w, p) if i == index else w for i, w in enumerate(row)] for row in weights]
