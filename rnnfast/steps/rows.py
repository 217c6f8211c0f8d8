"""Calls that move or combine the axes of a step's values and weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graph import Graph, Node
from .operators import number
from .values import (
    Piece,
    Row,
    Unsupported,
    Value,
    along,
    batch_size,
    broadcast,
    canonical,
    dropped_axis,
    join,
    make,
    part,
    permuted,
    pointwise,
    rows_of,
    with_axis,
)
from .weights import Weight, in_grains

Pairwise = Callable[[Value, Value], Value]


def dims_of(x: Value | Weight) -> int:
    return len(x.axes) if isinstance(x, Weight) else x.dims


def size(x: Value | Weight, axis: int) -> int:
    return x.sizes[axis] if isinstance(x, Weight) else x.features[x.feature_of(axis)]


def permute(x: Any, order: Sequence[int]) -> Any:
    order = [axis % dims_of(x) for axis in order]
    return x.permuted(order) if isinstance(x, Weight) else permuted(x, order)


def unsqueeze(x: Any, axis: int) -> Any:
    axis %= dims_of(x) + 1
    if isinstance(x, Weight):
        return x.unsqueezed(axis)
    if x.batch is None:
        return with_axis(x, axis, None)
    before = axis <= x.batch
    return with_axis(x, axis - (not before), x.batch + before)


def squeeze(x: Any, axes: Any) -> Any:
    """Axes of size 1 dropped: all, or those of ``axes``."""
    dims = dims_of(x)
    axes = range(dims) if axes is None else [axes] if isinstance(axes, int) else axes
    for axis in sorted({axis % dims for axis in axes}, reverse=True):
        if isinstance(x, Weight):
            x = x.squeezed(axis) if x.sizes[axis] == 1 else x
        elif axis != x.batch and size(x, axis) == 1:
            batch = None if x.batch is None else x.batch - (axis < x.batch)
            x = dropped_axis(x, x.feature_of(axis), batch)
    return x


def narrow(g: Graph, x: Any, axis: int, first: Any, last: Any) -> Any:
    """[first, last) along an axis, as Python's slices."""
    if isinstance(x, Value) and axis % x.dims == x.batch:
        if not first and (last is None or last >= batch_size.get()):
            return x
        raise Unsupported("it takes a part of the batch")
    first, last, _ = slice(first, last).indices(size(x, axis))
    if isinstance(x, Weight):
        return x.narrowed(axis % dims_of(x), first, last - first)
    own = x.feature_of(axis)
    features = list(x.features)
    features[own] = last - first
    if own == x.along:
        rows = [part(g, row, first, last - first) for row in rows_of(x)]
        return make(features, x.batch, rows, x.along)
    taken = x.rows[(slice(None),) * x.in_array(own) + (slice(first, last),)]
    return Value(tuple(features), x.batch, x.along, taken)


def select(g: Graph, x: Any, axis: int, index: int) -> Any:
    if isinstance(x, Value) and axis % x.dims == x.batch:
        raise Unsupported("it takes one sequence of the batch")
    index %= size(x, axis)
    if isinstance(x, Weight):
        return x.selected(axis % dims_of(x), index)
    return squeeze(narrow(g, x, axis, index, index + 1), axis)


def rolled(g: Graph, x: Value, axis: int, by: int) -> Value:
    """Units moved along an axis by ``by``, and those that fall off put in front."""
    whole = size(x, axis)
    by %= whole
    if by == 0:
        return x
    return cat([narrow(g, x, axis, whole - by, whole), narrow(g, x, axis, 0, whole - by)], axis)


def cat(values: Sequence[Value], axis: int) -> Value:
    batch = next((v.batch for v in values if v.batch is not None), None)
    if any(v.batch not in (None, batch) for v in values):
        raise Unsupported("it pairs the batch with another axis")
    if any(v.batch is None for v in values) and batch is not None:
        raise Unsupported("it joins what has a batch with what has none")
    first = values[0]
    own = first.feature_of(axis)
    features = list(first.features)
    features[own] = sum(v.features[own] for v in values)
    at = own if any(v.along == own for v in values) else first.along
    values = [along(v, at) for v in values]
    if own != at:
        array = np.concatenate([v.rows for v in values], values[0].in_array(own))
        return Value(tuple(features), batch, at, array)
    each = zip(*(rows_of(v) for v in values), strict=True)
    return make(features, batch, [join(rows) for rows in each], at)


# --- reductions ----------------------------------------------------------------------------------


def _features(x: Value, axes: Any) -> list[int]:
    if axes is None or (not isinstance(axes, int) and len(axes) == 0):
        axes = range(x.dims)
    axes = [axes] if isinstance(axes, int) else list(axes)
    return sorted(x.feature_of(axis) for axis in axes)


def count(x: Value, axes: Any) -> float:
    """How many numbers a reduction over ``axes`` takes."""
    return float(math.prod(x.features[axis] for axis in _features(x, axes)))


def reduce(g: Graph, op: str, x: Value, axes: Any, keepdim: bool) -> Value:
    """``op`` is "rsum" or "rmax"."""
    both = "add" if op == "rsum" else "most"
    x = broadcast(lambda nodes: number(g, nodes[0]), g, [x])
    own = _features(x, axes)
    if x.features and x.features[x.along] == 1:
        x = canonical(x)
    features, found = list(x.features), x
    rows: list[Row]
    for axis in own:
        features[axis] = 1
        if axis == x.along:
            rows = [(Piece(_reduced(g, op, both, row), 1),) for row in rows_of(found)]
        else:
            array = np.moveaxis(found.rows, found.in_array(axis), -1)
            rows = [_across(g, both, list(group)) for group in array.reshape(-1, array.shape[-1])]
        found = make(features, x.batch, rows, x.along)
    return found if keepdim else squeeze(found, axes if own else None)


def over_axes(g: Graph, x: Value, axis: int, keepdim: bool, both: Pairwise, what: str) -> Value:
    """``both`` of the values along an axis, from the first on, where that is written out."""
    own = x.feature_of(axis)
    if x.features[own] == 1:
        return x if keepdim else squeeze(x, axis)
    if x.features[x.along] == 1:
        x = canonical(x)
    if own == x.along:
        raise Unsupported(what)
    found, *more = [select(g, x, axis, index) for index in range(x.features[own])]
    for value in more:
        found = both(found, value)
    return unsqueeze(found, axis % x.dims) if keepdim else found


def _reduced(g: Graph, op: str, both: str, row: Row) -> Node:
    found, *more = [g.reduce(op, node, width) for node, width in row]
    for node in more:
        found = g(both, found, node)
    return found


def _across(g: Graph, both: str, rows: list[Row]) -> Row:
    found = rows[0]
    for row in rows[1:]:
        found = pointwise(lambda nodes: g(both, *nodes), g, [found, row])
    return found


# --- products ------------------------------------------------------------------------------------


def matmul(g: Graph, grain: int, a: Any, b: Any) -> Value:
    """[B, K] times a weight [K, N], or a weight [N, K] times [K, B]; in front there may be one
    axis more."""
    if isinstance(a, Value) and isinstance(b, Weight):
        dims = dims_of(b)
        by_output = b.permuted([*range(dims - 2), dims - 1, dims - 2])
        return _products(g, grain, a, by_output, a.dims - 2)
    if isinstance(a, Weight) and isinstance(b, Value):
        return _products(g, grain, b, a, b.dims - 1)
    raise Unsupported("it multiplies what is no weight of the cell")


def _products(g: Graph, grain: int, x: Value, weight: Weight, batch: int) -> Value:
    """``weight`` [(n,) N, K] times each of the rows."""
    x = along(x, len(x.features) - 1)
    if x.batch != batch:
        raise Unsupported("its operand's batch is not where a product of rows has it")
    count = dims_of(weight) - 2
    each = [weight.selected(0, at) for at in range(weight.sizes[0])] if count else [weight]
    rows = [_product(g, grain, row, one) for row, one in zip(rows_of(x), each, strict=True)]
    return make((*x.features[:-1], weight.sizes[-2]), x.batch, rows)


def _product(g: Graph, grain: int, row: Row, weight: Weight) -> Row:
    by_row, by_column = (math.gcd(grain, axis[-1][0]) for axis in weight.axes)
    pieces = list(itertools.chain.from_iterable(_cut(g, piece, by_column) for piece in row))
    found = []
    for at, rows in in_grains(weight.sizes[0], by_row):
        terms, first = [], 0
        for node, width in pieces:
            terms.append((weight.block(at, rows, first, width), g.spread(node, width)))
            first += width
        found.append(Piece(g.product(terms), rows))
    return tuple(found)


def _cut(g: Graph, piece: Piece, grain: int) -> list[Piece]:
    node, width = piece
    return [Piece(g.part(node, at, n), n) for at, n in in_grains(width, grain)]
