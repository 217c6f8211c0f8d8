"""Which sums over all steps the gradients of a compiled cell's weights are, so that one pass makes
all of them (csrc/cpu/sums.h): the columns of the gradients that backward stores, cut where another
product begins, what each of them multiplies, and where the result goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .graph import Matrix
from .layout import ElementGradient, Layout, MatrixGradient, Place

BUFFERS = ("dgx", "dproduct")  # of gradients at each step; all others are of each sequence
# of one pass; of each gradient; of each sum (csrc/cpu/sums_problem.h)
MOST_OPERANDS, MOST_GRADIENTS, MOST_SUMS, MOST_TERMS = 16, 32, 2, 4


class Operand(NamedTuple):
    """Columns of a tensor, all of them where ``width`` is 0. ``initial``: the tensor of the states
    that the first step begins with, where each step multiplied the state before it."""

    tensor: str
    initial: str | None = None
    offset: int = 0
    width: int = 0


class Into(NamedTuple):
    """Where value (m, n) of a product goes: to element offset + (first + m)·row + n·column of a
    weight's gradient; where ``row`` is 0, it is the operand's width."""

    weight: str
    offset: int
    row: int
    column: int = 1
    first: int = 0


class Use(NamedTuple):
    """What ``places`` of the gradients are for: products with ``operands``, one each, whose sum is
    wanted; or, of one place, its own sums."""

    places: tuple[Place, ...]
    into: Into
    operands: tuple[Operand, ...] = ()

    @property
    def place(self) -> Place:
        return self.places[0]

    @property
    def apart(self) -> tuple[tuple[str, int], ...]:
        """Where the places lie, but for how far they are from the buffers' beginning together."""
        first = self.place.offset
        return tuple((place.buffer, place.offset - first) for place in self.places)


@dataclass
class Gradient:
    """Columns that are packed once, of each term: what they multiply, and where the sums of the
    first go."""

    places: tuple[Place, ...]
    products: dict[tuple[Operand, ...], Into] = field(default_factory=dict)
    sums: list[Into] = field(default_factory=list)

    def takes(self, use: Use) -> bool:
        if not use.operands:
            return len(self.sums) < MOST_SUMS
        return use.operands not in self.products

    def take(self, use: Use) -> None:
        into = use.into._replace(first=self.places[0].offset - use.place.offset)
        if not use.operands:
            self.sums.append(into)
        else:
            self.products[use.operands] = into


@dataclass
class Sums:
    """One pass: the gradients of ``weights``. ``tensors`` are what it is to be given, the first
    "dgx": rows of the layout, "x", and states' values "new0", … and initial ones "init0", …"""

    weights: tuple[str, ...]
    tensors: tuple[str, ...]
    fields: dict[str, Any]


def sums_of(layout: Layout, kind: str, weights: Sequence[str]) -> list[Sums]:
    """The passes that make the gradients of as many of ``weights`` as can be made so; ``kind`` as
    in Scan."""
    uses = {name: _uses(layout, kind, name) for name in weights}
    fitting = [name for name in weights if _fits(layout, kind, name)]
    together = _pass(layout, fitting, uses)
    if together is not None:
        return [together] if fitting else []
    each = (_pass(layout, [name], uses) for name in fitting)
    return [one for one in each if one is not None]


def _uses(layout: Layout, kind: str, weight: str) -> list[Use]:
    dgx = Place("dgx", 0, layout.widths["dgx"])
    if weight == "w_ih":
        return [Use((dgx,), Into(weight, 0, 0), (Operand("x"),))]
    if weight == "b_ih":
        return [Use((dgx,), Into(weight, 0, 1))]
    found = [use for terms in _matrices(layout, weight).values() for use in _products(terms)]
    return found + [_sum(e) for e in layout.elements if e.weight == weight]


def _matrices(layout: Layout, weight: str) -> dict[Matrix, list[MatrixGradient]]:
    """By the matrix, which may multiply several values in a step."""
    found: dict[Matrix, list[MatrixGradient]] = {}
    for one in layout.matrices:
        if one.matrix.weight == weight:
            found.setdefault(one.matrix, []).append(one)
    return found


def _sum(element: ElementGradient) -> Use:
    buffer, offset, width = element.gradient
    return Use((Place(buffer, offset, max(width, 1)),), Into(element.weight, element.offset, 1))


def _products(terms: Sequence[MatrixGradient]) -> Iterator[Use]:
    """Of each block of a matrix. A tangent cell's own states stand behind their tangents; their
    term is to be the first, since the bias is its sum."""
    terms = sorted(terms, key=lambda one: one.operand, reverse=True)
    matrix = terms[0].matrix
    rows, columns = matrix.rows // matrix.blocks, matrix.cols // matrix.blocks
    for block in range(matrix.blocks):
        places = [Place(g.buffer, g.offset + block * rows, rows) for _, g, _ in terms]
        operands = [_operand(one.operand, block * columns, columns) for one in terms]
        at = matrix.offset + block * matrix.block_stride
        into = Into(matrix.weight, at, matrix.row_stride, matrix.col_stride)
        yield Use(tuple(places), into, tuple(operands))


def _operand(place: Place, first: int, width: int) -> Operand:
    buffer, offset = place.buffer, place.offset + first
    if buffer.startswith("state"):
        number = buffer.removeprefix("state")
        return Operand(f"new{number}", f"init{number}", offset, width)
    return Operand(buffer, None, offset, width)


def _fits(layout: Layout, kind: str, weight: str) -> bool:
    """Whether no element of a weight is a part of two matrices, of which a sum would have to be
    made, and the rows or the columns of each part are together."""
    if weight == "w_ih":
        return kind == "dense"  # tokens are summed row by row
    matrices = _matrices(layout, weight)
    if any(len(terms) > MOST_TERMS for terms in matrices.values()):
        return False
    if any(m.col_stride != 1 and m.row_stride != 1 for m in matrices):
        return False
    ends = [
        m.offset
        + (m.blocks - 1) * m.block_stride
        + (m.rows // m.blocks - 1) * m.row_stride
        + (m.cols // m.blocks - 1) * m.col_stride
        + 1
        for m in matrices
    ]
    elements = [(e.offset, max(e.gradient.width, 1)) for e in layout.elements if e.weight == weight]
    count = np.zeros(max([*ends, *(first + n for first, n in elements), 0]), np.int8)
    for m in matrices:
        shape = (m.blocks, m.rows // m.blocks, m.cols // m.blocks)
        strides = (m.block_stride, m.row_stride, m.col_stride)
        # each place once for each row and column that lies there, within a matrix as well
        at = np.add.outer(
            np.add.outer(np.arange(shape[0]) * strides[0], np.arange(shape[1]) * strides[1]),
            np.arange(shape[2]) * strides[2],
        )
        np.add.at(count, m.offset + at.ravel(), 1)
    for first, n in elements:
        count[first : first + n] += 1
    return not (count > 1).any()


def _pass(layout: Layout, weights: Sequence[str], uses: dict[str, list[Use]]) -> Sums | None:
    """One pass for ``weights``; None where it would be too many sums for one."""
    wanted = [use for name in weights for use in uses[name]]
    gradients = [g for alike in _alike(wanted) for g in _cut(alike)]
    operands = list(dict.fromkeys(o for g in gradients for o in g.products))
    if len(operands) > MOST_OPERANDS or len(gradients) > MOST_GRADIENTS:
        return None
    tensors = ["dgx"]

    def number(tensor: str | None) -> int:
        if tensor is None:
            return -1
        if tensor not in tensors:
            tensors.append(tensor)
        return tensors.index(tensor)

    def result(where: Into) -> int:
        return weights.index(where.weight)

    fields = {
        "operands": [
            [(number(o.tensor), number(o.initial), o.offset, o.width) for o in terms]
            for terms in operands
        ],
        "gradients": [[(number(p.buffer), *p[1:]) for p in g.places] for g in gradients],
        "products": [
            (
                k,
                operands.index(operand),
                result(into),
                into.offset,
                into.first,
                into.row,
                into.column,
            )
            for k, gradient in enumerate(gradients)
            for operand, into in gradient.products.items()
        ],
        "sums": [
            (k, result(into), into.offset + into.first)
            for k, gradient in enumerate(gradients)
            for into in gradient.sums
        ],
        "sequences": [
            (number(use.place.buffer), *use.place[1:], result(use.into), use.into.offset)
            for use in wanted
            if use.place.buffer not in BUFFERS
        ],
    }
    return Sums(tuple(weights), tuple(tensors), fields)


def _alike(uses: Sequence[Use]) -> list[list[Use]]:
    """Those whose places lie alike; own sums with products of the same, if there are any."""
    found: dict[Any, list[Use]] = {}
    here = [use for use in uses if use.place.buffer in BUFFERS]
    for use in sorted(here, key=lambda use: not use.operands):
        known = (own for own in found.values() if any(_covers(one, use) for one in own))
        place = next(known, None) if not use.operands else None
        (found.setdefault(use.apart, []) if place is None else place).append(use)
    return list(found.values())


def _covers(one: Use, other: Use) -> bool:
    (a, first, width), (b, begin, size) = one.place, other.place
    return a == b and first <= begin and begin + size <= first + width


def _cut(uses: Sequence[Use]) -> Iterator[Gradient]:
    """The columns that ``uses``, which are alike, have; cut where one begins or ends, and twice
    where they have more uses than one gradient takes."""
    apart = uses[0].apart
    ends = {end for _, first, width in (u.place for u in uses) for end in (first, first + width)}
    for first, last in itertools.pairwise(sorted(ends)):
        found: list[Gradient] = []
        for use in uses:
            begin = use.place.offset
            if not begin <= first or not last <= begin + use.place.width:
                continue
            gradient = next((g for g in found if g.takes(use)), None)
            if gradient is None:
                places = tuple(Place(buffer, first + by, last - first) for buffer, by in apart)
                gradient = Gradient(places)
                found.append(gradient)
            gradient.take(use)
        yield from found
