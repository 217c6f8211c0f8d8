"""Tensors of a step while it is traced: a batch axis, and around it rows of graph nodes.

One axis runs along a row, usually the last; the others are written out. A row is a list of pieces,
each a node and how many units it stands for, so that chunk, cat and slices are arithmetic of lists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .graph import Graph, Node

# The batch while a step is traced: a prime that divides no size of the step, so that no other axis
# is taken for it.
batch_size: ContextVar[int] = ContextVar("batch_size", default=61)
MOST_ROWS = 64  # that an axis may be written out into


class Unsupported(Exception):
    """What a step does and kernels can't; the tracer adds where."""


class Piece(NamedTuple):
    node: Node
    width: int


Row = tuple[Piece, ...]


@dataclass
class Value:
    """``features``: sizes of the axes but the batch's. ``batch``: where that is among all axes;
    None: the value is the same for all sequences. ``along``: the feature that runs along the rows.
    ``rows``: an object array of the other features' sizes, each element a Row. Without features it
    is one Row of size 1.
    """

    features: tuple[int, ...]
    batch: int | None
    along: int
    rows: np.ndarray

    @property
    def dims(self) -> int:
        return len(self.features) + (self.batch is not None)

    def feature_of(self, axis: int) -> int:
        """``axis`` of the tensor, counted among the features."""
        axis %= max(self.dims, 1)
        if self.batch is None:
            return axis
        if axis == self.batch:
            raise Unsupported("it works along the batch")
        return axis - (axis > self.batch)

    def in_array(self, feature: int) -> int:
        """A feature's axis in ``rows``."""
        return feature - (feature > self.along)


def without_batch(shape: Sequence[int]) -> tuple[tuple[int, ...], int | None]:
    """The features of a shape, and where the batch is."""
    B = batch_size.get()
    at = [axis for axis, size in enumerate(shape) if size % B == 0 and size > 0]
    if not at:
        return tuple(shape), None
    if len(at) > 1 or shape[at[0]] != B:
        raise Unsupported("it mixes the batch with another axis")
    return tuple(size for axis, size in enumerate(shape) if axis != at[0]), at[0]


def make(
    features: Sequence[int], batch: int | None, rows: Sequence[Row], along: int | None = None
) -> Value:
    """The value with these rows, in order; along the last axis unless another is named."""
    at = len(features) - 1 if along is None else along
    outer = [size for axis, size in enumerate(features) if axis != at]
    array = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        array[index] = row
    return Value(tuple(features), batch, at, array.reshape(outer))


def rows_of(value: Value) -> list[Row]:
    return list(value.rows.reshape(-1))


def constant(g: Graph, number: float, features: Sequence[int], batch: int | None) -> Value:
    width = features[-1] if features else 1
    return make(features, batch, [(Piece(g.const(number), width),)] * math.prod(features[:-1]))


def width_of(row: Row) -> int:
    return sum(piece.width for piece in row)


def part(g: Graph, row: Row, first: int, width: int) -> Row:
    """``width`` units of a row from ``first`` on."""
    found: list[Piece] = []
    at = 0
    for node, size in row:
        low, high = max(first, at), min(first + width, at + size)
        if low < high:
            found.append(Piece(g.part(node, low - at, high - low), high - low))
        at += size
    return tuple(found)


def join(rows: Sequence[Row]) -> Row:
    """The rows behind one another; equal scalars side by side become one piece."""
    found: list[Piece] = []
    for piece in itertools.chain(*rows):
        if found and piece.node.scalar and found[-1].node is piece.node:
            found[-1] = Piece(piece.node, found[-1].width + piece.width)
        else:
            found.append(piece)
    return tuple(found)


def stretched(row: Row, width: int) -> Row:
    """A row of size 1 for each unit of one of size ``width``."""
    if width_of(row) == width:
        return row
    (piece,) = row
    if not piece.node.scalar:
        raise Unsupported("it spreads one hidden unit over many")
    return (Piece(piece.node, width),)


def pointwise(apply: Callable[[list[Node]], Node], g: Graph, rows: Sequence[Row]) -> Row:
    """``apply`` on rows piece by piece, cut where any of them is."""
    width = max(width_of(row) for row in rows)
    rows = [stretched(row, width) for row in rows]
    cuts = {cut for row in rows for cut in itertools.accumulate(p.width for p in row)}
    found = []
    for low, high in itertools.pairwise([0, *sorted(cuts)]):
        nodes = [part(g, row, low, high - low)[0].node for row in rows]
        found.append((Piece(apply(nodes), high - low),))
    return join(found)


# --- axes ----------------------------------------------------------------------------------------


def canonical(value: Value) -> Value:
    """With rows along the last feature that is not of size 1."""
    sizes = value.features
    if not sizes:
        return value
    last = max((axis for axis, size in enumerate(sizes) if size != 1), default=len(sizes) - 1)
    return value if last == value.along else along(value, last)


def along(value: Value, feature: int) -> Value:
    """With rows along another feature, which only scalars can change to."""
    if feature == value.along:
        return value
    size = value.features[feature]
    apart = np.moveaxis(value.rows, value.in_array(feature), -1)
    others = [axis for axis in range(len(value.features)) if axis not in (feature, value.along)]
    units = value.features[value.along]
    if units * size * math.prod(value.features[axis] for axis in others) > 4096 and units > 1:
        raise Unsupported("it turns the hidden axis")
    rows: dict[tuple[int, ...], Row] = {}
    for outer in np.ndindex(*apart.shape[:-1]):
        for unit in range(units):
            pieces = [_unit(apart[outer + (at,)], unit) for at in range(size)]
            rows[outer + (unit,)] = join([(piece,) for piece in pieces])
    kept = [*others, value.along]  # axes of `rows`, in this order
    array = np.empty([value.features[axis] for axis in kept], dtype=object)
    for index, row in rows.items():
        array[index] = row
    order = [kept.index(axis) for axis in sorted(kept)]
    return Value(value.features, value.batch, feature, array.transpose(order))


def _unit(row: Row, unit: int) -> Piece:
    for node, width in row:
        if unit < width:
            if not node.scalar and node.width > 1:
                raise Unsupported("it turns the hidden axis")
            return Piece(node, 1)
        unit -= width
    raise AssertionError


def with_axis(value: Value, feature: int, batch: int | None) -> Value:
    """With a further feature of size 1."""
    features = (*value.features[:feature], 1, *value.features[feature:])
    if not value.features:
        return Value((1,), batch, 0, value.rows)
    at = value.along + (feature <= value.along)
    place = feature - (feature > at)
    return Value(features, batch, at, np.expand_dims(value.rows, place))


def dropped_axis(value: Value, feature: int, batch: int | None) -> Value:
    """Without a feature of size 1."""
    if len(value.features) > 1 and feature == value.along:
        value = along(value, max(a for a in range(len(value.features)) if a != feature))
    features = value.features[:feature] + value.features[feature + 1 :]
    if not features:
        return Value((), batch, -1, value.rows)
    at = value.along - (feature < value.along)
    return Value(features, batch, at, value.rows.squeeze(value.in_array(feature)))


def reshaped(g: Graph, value: Value, features: Sequence[int], batch: int | None) -> Value:
    """The same units in the same order, as other axes."""
    whole = _in_one(g, join(rows_of(canonical(value))))
    sizes = list(features) or [1]
    at = max((axis for axis, size in enumerate(sizes) if size != 1), default=len(sizes) - 1)
    count = math.prod(sizes) // max(sizes[at], 1)
    if count > MOST_ROWS:
        raise Unsupported("it lays the hidden units out in another order")
    rows = [part(g, whole, index * sizes[at], sizes[at]) for index in range(count)]
    return make(features, batch, rows, at if features else None)


def _in_one(g: Graph, row: Row) -> Row:
    """Neighbouring pieces that are parts of one node of ``g.joins`` units, as that node."""
    found, at = list[Piece](), 0
    for piece in row:
        found.append(piece)
        at += piece.width
        if not g.joins or at % g.joins or found[-1].node.scalar:
            continue
        last, width = len(found), 0
        while last > 0 and width < g.joins:
            last -= 1
            width += found[last].width
        node = g.joined([p.node for p in found[last:]]) if width == g.joins else None
        if node is not None:
            found[last:] = [Piece(node, width)]
    return tuple(found)


def permuted(value: Value, order: Sequence[int]) -> Value:
    """Axis i of the result is axis ``order[i]`` of ``value``."""
    batch = None if value.batch is None else list(order).index(value.batch)
    own = [value.feature_of(axis) for axis in order if axis != value.batch]
    if not own:
        return Value((), batch, -1, value.rows)
    sizes = tuple(value.features[axis] for axis in own)
    array = value.rows.transpose([value.in_array(axis) for axis in own if axis != value.along])
    return Value(sizes, batch, own.index(value.along), array)


def broadcast(apply: Callable[[list[Node]], Node], g: Graph, values: Sequence[Value]) -> Value:
    """``apply`` on values, broadcast as torch does."""
    dims = max(value.dims for value in values)
    batches = {v.batch + dims - v.dims for v in values if v.batch is not None}
    if len(batches) > 1:
        raise Unsupported("it pairs the batch with another axis")
    batch = batches.pop() if batches else None
    count = dims - (batch is not None)
    full = [_full(value, dims, batch) for value in values]
    features = tuple(
        max((v.features[axis] for v in full), key=lambda size: size != 1) for axis in range(count)
    )
    if not count:
        return make((), batch, [pointwise(apply, g, [rows_of(value)[0] for value in full])])
    places = {v.along for v in full if v.features[v.along] != 1}
    at = places.pop() if len(places) == 1 else max(places, default=count - 1)
    outer = [size for axis, size in enumerate(features) if axis != at]
    arrays = [np.broadcast_to(along(value, at).rows, outer).reshape(-1) for value in full]
    made = [
        stretched(pointwise(apply, g, rows), features[at]) for rows in zip(*arrays, strict=True)
    ]
    return make(features, batch, made, at)


def _full(value: Value, dims: int, batch: int | None) -> Value:
    """With as many axes as ``dims``, and none of its own where the batch is."""
    own = None if value.batch is None else batch
    if value.batch is None and batch is not None and batch >= dims - value.dims:
        at = batch - (dims - value.dims)
        if value.features[at] != 1:
            raise Unsupported("it pairs the batch with another axis")
        value = dropped_axis(value, at, None)
    while len(value.features) < dims - (batch is not None):
        value = with_axis(value, 0, None)
    return Value(value.features, own, value.along, value.rows)
