"""Weights of a step while it is traced: views of their elements, never copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .graph import Graph, Matrix
from .values import MOST_ROWS, Piece, Row, Unsupported, Value, make

Axis = tuple[tuple[int, int], ...]  # (size, stride) of each part, the outermost first


class Weight(NamedTuple):
    """A view of the weight ``name``. An axis may be made of several that are not neighbours in
    memory, as a copy's would be."""

    name: str
    axes: tuple[Axis, ...]
    offset: int = 0

    @staticmethod
    def whole(name: str, sizes: Sequence[int]) -> Weight:
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        return Weight(name, tuple(((n, s),) for n, s in zip(sizes, strides, strict=True)))

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(n for n, _ in axis) for axis in self.axes)

    def permuted(self, order: Sequence[int]) -> Weight:
        return self._replace(axes=tuple(self.axes[axis] for axis in order))

    def narrowed(self, axis: int, first: int, size: int) -> Weight:
        (n, stride), *inner = self.axes[axis]
        units = math.prod(m for m, _ in inner)
        if first == 0 and size == n * units:
            return self
        if first % units or size % units:
            raise Unsupported("it takes a weight apart across its own order")
        axes = list(self.axes)
        axes[axis] = ((size // units, stride), *inner)
        return self._replace(axes=tuple(axes), offset=self.offset + first // units * stride)

    def selected(self, axis: int, index: int) -> Weight:
        offset = self.offset_at(axis, index)
        axes = self.axes[:axis] + self.axes[axis + 1 :]
        return self._replace(axes=axes, offset=offset)

    def offset_at(self, axis: int, index: int) -> int:
        """Of the first element at ``index`` of an axis."""
        offset = self.offset
        for size, stride in reversed(self.axes[axis]):
            offset, index = offset + index % size * stride, index // size
        return offset

    def run(self, axis: int, first: int) -> tuple[int, int]:
        """(how many elements from ``first`` on are evenly spaced, their stride)."""
        size, stride = self.axes[axis][-1]
        return size - first % size, stride

    def unsqueezed(self, axis: int) -> Weight:
        return self._replace(axes=(*self.axes[:axis], ((1, 0),), *self.axes[axis:]))

    def squeezed(self, axis: int) -> Weight:
        return self._replace(axes=self.axes[:axis] + self.axes[axis + 1 :])

    def viewed(self, sizes: Sequence[int]) -> Weight:
        """As other axes, in the same order."""
        left = [p for axis in self.axes for p in axis if p[0] != 1]
        axes: list[Axis] = []
        for size in reversed(sizes):
            parts: list[tuple[int, int]] = []
            while size > 1:
                n, stride = left.pop()
                taken = math.gcd(n, size)
                if taken == 1 or (taken < n and taken < size):
                    raise Unsupported("it lays a weight out in another order")
                if taken < n:
                    left.append((n // taken, stride * taken))
                parts.insert(0, (taken, stride))
                size //= taken
            axes.insert(0, _merged(parts) or ((1, 0),))
        return self._replace(axes=tuple(axes))

    def value(self, g: Graph, grain: int) -> Value:
        """As a value that is the same for all sequences."""
        sizes = self.sizes
        count = math.prod(sizes[:-1])
        if count > MOST_ROWS:
            raise Unsupported("it uses a matrix of the cell otherwise than in a product")
        rows: list[Row] = []
        for index in range(count):
            one, rest = self, index
            for axis in reversed(range(len(sizes) - 1)):
                one = one._replace(offset=one.offset_at(axis, rest % sizes[axis]))
                rest //= sizes[axis]
            rows.append(one.vector(g, grain))
        return make(sizes, None, rows)

    def vector(self, g: Graph, grain: int) -> Row:
        """The elements along the last axis, in pieces of ``grain``."""
        if not self.sizes or self.sizes[-1] == 1:
            return (Piece(g.param(self.name, self.offset, 1, 0), 1),)
        last = len(self.axes) - 1
        found = []
        for at, size in in_grains(self.sizes[-1], grain):
            length, stride = self.run(last, at)
            if stride != 1 or length < size:
                raise Unsupported("it uses a weight's columns one by one")
            found.append(Piece(g.param(self.name, self.offset_at(last, at), 1, size), size))
        return tuple(found)

    def block(self, row: int, rows: int, column: int, columns: int) -> Matrix:
        """A part of a 2-D view."""
        lengths = (self.run(0, row), self.run(1, column))
        if lengths[0][0] < rows or lengths[1][0] < columns:
            raise Unsupported("a product takes a weight apart across its own order")
        offset = self.offset_at(0, row) + self.offset_at(1, column) - self.offset
        return Matrix(self.name, offset, rows, columns, lengths[0][1], lengths[1][1])


def _merged(parts: list[tuple[int, int]]) -> Axis:
    """Neighbours in memory as one part."""
    found: list[tuple[int, int]] = []
    for n, stride in parts:
        if found and found[-1][1] == n * stride:
            n *= found.pop()[0]
        found.append((n, stride))
    return tuple(found)


def in_grains(width: int, grain: int) -> list[tuple[int, int]]:
    """(first, size) of the pieces of a row."""
    size = math.gcd(width, grain)
    if width // size > 256:
        size = width
    return [(at, size) for at in range(0, width, size)]
