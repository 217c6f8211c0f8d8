"""Cells with masks: recurrent dropout and zoneout as steps around a cell's own.

The masks come in with the gates, behind those of the cell, a mask of H numbers each:
gx [B, (G + masks)*H]. So they are an input like any other, and whoever runs a cell of one's own
runs these.

A cell of one's own has no W_hr and states of H units. One with a projection has its output there in
the first P units of such a state, and zeros behind it; W_hr is a parameter as others are.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .own import CELLS, OwnCell
from .spec import CellSpec, Param, States, Step, StepWeights


@dataclass(frozen=True, eq=False)
class MaskedCell(OwnCell):
    """A cell with masks. ``masks``: what for, in the order of the masks."""

    masks: tuple[str, ...] = ()


def masked_cell(cell: str, P: int, bias: bool, recurrent: bool, zoned: tuple[bool, ...]) -> str:
    """The name of ``cell``, whose output has ``P`` units where it is projected, with a mask on h
    before the product where ``recurrent``, and one for each state that is ``zoned``. It takes gates
    that are projected, and the weights of the cell but for those of the input.

    Raises:
        ValueError: it has no ``w_hh`` where ``recurrent``.
    """
    spec = CELLS[cell]
    if recurrent and spec.recurrent is None:
        raise ValueError(f"recurrent_dropout: the cell {cell!r} has no weight_hh")
    of = [name for name, on in zip(spec.states, zoned, strict=True) if on]
    masks = ("recurrent_dropout",) * recurrent + tuple(f"zoneout {name}" for name in of)
    name = f"{cell} with {', '.join(masks) or 'projected gates'}"
    name += "" if bias else ", without bias"
    if spec.projected:
        name += f", proj_size {P}"
    if name not in CELLS:
        CELLS[name] = MaskedCell(
            name,
            gates=spec.gates + len(masks),
            states=spec.states,
            step=_step(spec, P, recurrent, zoned),
            source=spec.source,
            own=True,
            params=_weights(spec, P, bias),
            recurrent=None,
            settings=spec.settings,
            masks=masks,
        )
    return name


def plain_cell(cell: str, P: int, bias: bool) -> str:
    """The name of ``cell`` as a cell of one's own that takes gates that are projected: itself, or
    as ``masked_cell`` has it, without a mask."""
    spec = CELLS[cell]
    if spec.own and spec.recurrent is None:
        return cell
    return masked_cell(cell, P, bias, False, (False,) * len(spec.states))


def _weights(spec: CellSpec, P: int, bias: bool) -> tuple[Param, ...]:
    """All that are not the input's: their shapes name the gates of the cell alone."""
    found = list(spec.params)
    if spec.recurrent is not None:
        of_bias = [Param("b_hh", "G*H")] if bias else []
        recurrent = f"G*H, {P}" if spec.projected else spec.recurrent
        projection = [Param("w_hr", f"{P}, H")] if spec.projected else []
        found = [Param("w_hh", recurrent), *of_bias, *projection, *found]
    return tuple(p._replace(shape=re.sub(r"\bG\b", str(spec.gates), p.shape)) for p in found)


def _step(spec: CellSpec, P: int, recurrent: bool, zoned: Sequence[bool]) -> Step:
    @functools.wraps(spec.step)
    def step(gx: Tensor, states: States, w: StepWeights) -> States:
        H = gx.shape[-1] // (spec.gates + recurrent + sum(zoned))
        gx, *masks = gx.split([spec.gates * H] + [H] * (recurrent + sum(zoned)), -1)
        if spec.projected:
            states = (states[0][:, :P], *states[1:])
        if recurrent:
            mask = masks.pop(0)
            with _MaskedProducts(w.w_hh, mask[:, :P] if spec.projected else mask) as products:
                found = spec.step(gx, states, w)
            if not products.found:
                raise RuntimeError("recurrent_dropout: the step multiplies nothing by w_hh")
        else:
            found = spec.step(gx, states, w)
        h, *others = (
            new if not on else _kept(masks.pop(0)[:, : new.shape[-1]], old, new)
            for on, old, new in zip(zoned, states, found, strict=True)
        )
        return (F.pad(h, (0, H - P)) if spec.projected else h, *others)

    return step


def _kept(mask: Tensor, old: Tensor, new: Tensor) -> Tensor:
    return mask * old + (1 - mask) * new


class _MaskedProducts(TorchFunctionMode):
    """Multiplies by ``mask`` what a step multiplies by ``w_hh`` or a part of it."""

    def __init__(self, w_hh: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.mask, self.found = mask, False
        self.parts = {id(w_hh): w_hh}  # kept, so that no id is used twice

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not any(id(value) in self.parts for value in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if name in _PRODUCTS and args and id(args[0]) not in self.parts:
            self.found = True
            return func(args[0] * self.mask, *args[1:], **kwargs)
        found = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        if tensors and name not in _PARTS:
            raise RuntimeError(
                "recurrent_dropout knows w_hh and parts of it as the weight of F.linear, "
                f"rnnfast.block_linear and h @ w_hh.t() only, not in {name}"
            )
        self.parts.update((id(tensor), tensor) for tensor in tensors)
        return found


_PRODUCTS = ("linear", "block_linear", "matmul", "mm", "__matmul__")
_PARTS = ("chunk", "split", "unbind", "narrow", "select", "__getitem__", "view", "reshape") + (
    "t", "transpose", "unflatten", "__get__",
)  # fmt: skip
