"""What forward of a compiled cell leaves for backward beside its outputs, and in which dtypes.

In float32 and float64 it is the rows as the loop wrote them. Of 16-bit storage, which is computed
in float32, values that lie in [-1, 1] by their operator are kept as 16-bit fixed point, off by
1.5e-5 at most, as the built-in cells' gates are; all others in the storage's own dtype, as torch's
loop would have them; sums over a row in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import cast, wide
from ..steps.graph import Node, ordered
from ..steps.layout import Layout
from .base import TensorLike

_ONE, _NO_NUMBER = 32767, -32768
_BOUNDED = frozenset({"sigmoid", "tanh", "sin", "cos", "erf", "sign"})
# From which argument on an error counts by the size of what it is an error of.
_RELATIVE = {"div": 1, "pow": 0, "sqrt": 0, "rsqrt": 0, "log": 0, "log2": 0, "log10": 0}
_RELATIVE |= {"log1p": 0, "atan2": 0, "fmod": 0}
_KEEPING = frozenset({"neg", "abs", "mul", "detach", "spread", "maximum", "minimum", "most"})


class Part(NamedTuple):
    """Units of a row that backward reads. ``fixed``: they lie in [-1, 1]."""

    buffer: str
    first: int
    width: int
    fixed: bool


def is_bounded(node: Node) -> bool:
    """Whether its values lie in [-1, 1], whatever it is made of."""
    if node.op == "const":
        return abs(node.attrs[0]) <= 1
    if node.op == "where":
        return all(is_bounded(arg) for arg in node.args[1:])
    return node.op in _BOUNDED or (node.op in _KEEPING and all(map(is_bounded, node.args)))


@functools.lru_cache(maxsize=256)
def _parts(layout: Layout) -> tuple[Part, ...]:
    """In order, those side by side of one kind as one."""
    found = {}
    divisors = _divisors(layout)
    for stage in layout.forward.stages:
        for node, buffer, offset, *_ in stage.stores:
            if buffer in ("gx", "saved"):
                reads = divisors.get(buffer, ())
                fixed = is_bounded(node) and not _touched(reads, offset, node.width)
                found[buffer, offset] = Part(buffer, offset, node.width, fixed)
    read = [node for node in layout.backward.reads if node.attrs[0] == "gx"]
    places = [(node.attrs[1], node.width) for node in read]
    places += [m.operand[1:] for m in layout.matrices if m.operand.buffer == "gx"]
    for first, width in places:  # gx itself, where nothing was put in its place
        taken = [(p.first, p.width) for p in found.values() if p.buffer == "gx"]
        for at, left in _gaps(taken, first, width):
            found["gx", at] = Part("gx", at, left, False)
    merged: list[Part] = []
    for part in sorted(found.values()):
        if merged:
            buffer, first, width, fixed = merged[-1]
            if (buffer, first + width, fixed) == (part.buffer, part.first, part.fixed):
                merged.pop()
                part = Part(buffer, first, width + part.width, fixed)
        merged.append(part)
    return tuple(merged)


def _divisors(layout: Layout) -> dict[str, list[tuple[int, int]]]:
    """By row, what backward divides by, or takes a logarithm or a root of: there a small error is
    no small one of the result."""
    found: dict[str, list[tuple[int, int]]] = {}
    stores = [store.node for stage in layout.backward.stages for store in stage.stores]
    for node in ordered(stores):
        if node.op in _RELATIVE:
            for inner in ordered(node.args[_RELATIVE[node.op] :]):
                if inner.op == "load":
                    buffer, offset = inner.attrs
                    found.setdefault(buffer, []).append((offset, max(inner.width, 1)))
    return found


def _touched(places: Iterable[tuple[int, int]], first: int, width: int) -> bool:
    return any(at < first + width and first < at + size for at, size in places)


def _gaps(taken: Iterable[tuple[int, int]], first: int, width: int) -> Iterator[tuple[int, int]]:
    """What is left of ``width`` units from ``first`` on."""
    end = first + width
    for at, size in sorted(taken):
        if at > first and at < end:
            yield first, at - first
        if at < end:
            first = max(first, at + size)
    if first < end:
        yield first, end - first


@functools.lru_cache(maxsize=256)
def whole(layout: Layout) -> tuple[str, ...]:
    """Of the rows that are kept as they are, those that there are."""
    names = dict.fromkeys(part.buffer for part in _parts(layout))
    return (*names, *(("scalars",) if layout.widths["scalars"] else ()))


def _kinds(layout: Layout) -> list[bool]:
    """Of 16-bit storage: fixed point, the storage's own, as far as there are any."""
    kinds = {part.fixed for part in _parts(layout)}
    return [fixed for fixed in (True, False) if fixed in kinds]


def apart(layout: Layout, all_states: bool) -> list[int]:
    """States whose values backward needs and no output holds."""
    return [] if all_states else sorted(layout.history)


def like(
    layout: Layout, T: int, B: int, storage: torch.dtype, all_states: bool
) -> list[TensorLike]:
    dtype = wide(storage)
    found: list[TensorLike] = []
    if storage == dtype:
        found += [((T, B, layout.widths[name]), dtype) for name in whole(layout)]
    else:
        for fixed in _kinds(layout):
            width = sum(part.width for part in _parts(layout) if part.fixed == fixed)
            found.append(((T, B, width), torch.int16 if fixed else storage))
        if layout.widths["scalars"]:
            found.append(((T, B, layout.widths["scalars"]), dtype))
    H = layout.traced.hidden
    return found + [((T, B, H), storage) for _ in apart(layout, all_states)]


def to_save(
    layout: Layout,
    storage: torch.dtype,
    rows: Mapping[str, Tensor],
    history: Mapping[int, Tensor],
    all_states: bool,
) -> list[Tensor]:
    """As ``like`` says. ``rows``: by name, [T, B, width] of what a loop wrote, of those that there
    are."""
    states = [cast(history[k], storage) for k in apart(layout, all_states)]
    buffers = {name: rows[name] for name in whole(layout)}
    if storage == wide(storage):
        return [*buffers.values(), *states]
    found = []
    for fixed in _kinds(layout):
        each = [buffers[b][..., at : at + n] for b, at, n, f in _parts(layout) if f == fixed]
        values = torch.cat(each, -1) if len(each) > 1 else each[0]
        found.append(to_fixed(values) if fixed else values.to(storage))
    return [*found, *(buffers[name] for name in buffers if name == "scalars"), *states]


def restored(
    layout: Layout, storage: torch.dtype, saved: Sequence[Tensor], all_states: bool
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The rows by name, and the states' values that no output holds."""
    dtype, left = wide(storage), list(saved)
    if storage == dtype:
        rows = {name: left.pop(0) for name in whole(layout)}
        return rows, dict(zip(apart(layout, all_states), left, strict=True))
    rows = {}
    for fixed in _kinds(layout):
        values = left.pop(0)
        values = from_fixed(values, dtype) if fixed else values.to(dtype)
        at = 0
        for buffer, first, width, kind in _parts(layout):
            if kind == fixed:
                _put(rows, layout, buffer, first, values[..., at : at + width])
                at += width
    if layout.widths["scalars"]:
        rows["scalars"] = left.pop(0)
    states = dict(zip(apart(layout, all_states), left, strict=True))
    return rows, {k: cast(values, dtype) for k, values in states.items()}


def _put(rows: dict[str, Tensor], layout: Layout, buffer: str, first: int, values: Tensor) -> None:
    whole = layout.widths[buffer]
    if values.shape[-1] == whole and values.is_contiguous():
        rows[buffer] = values
        return
    if buffer not in rows:
        rows[buffer] = values.new_empty(*values.shape[:-1], whole)
    rows[buffer][..., first : first + values.shape[-1]] = values


def to_fixed(values: Tensor) -> Tensor:
    numbers = (values * _ONE).round_()
    return numbers.nan_to_num_(nan=float(_NO_NUMBER)).to(torch.int16)


def from_fixed(values: Tensor, dtype: torch.dtype) -> Tensor:
    numbers = values.to(dtype).mul_(1 / _ONE)
    return numbers.masked_fill_(values == _NO_NUMBER, torch.nan)
