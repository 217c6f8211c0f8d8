"""The rows that a cell's loops read and write, and what goes into which.

Rows of each step and sequence: "gx" [G*H], which forward also saves into; "saved"; "scalars";
"new0" (the output), "new1", …; in backward "dgx" [G*H] and "dproduct". Rows of a sequence: "tmp",
"acc" and "acc1" (gradients of weights' elements, and of
single ones), and the states and their gradients on their way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .derive import Derived, Kept, Part, derive, is_read_from_state, keep
from .graph import Graph, Matrix, Node, ordered
from .operators import clamp_keeps_bound
from .stages import Program, Store, plan
from .trace import Traced
from .values import Row


class Place(NamedTuple):
    """Units of a row."""

    buffer: str
    offset: int
    width: int


class MatrixGradient(NamedTuple):
    """Σ over steps and sequences of the row ``gradient`` times the row ``operand``."""

    matrix: Matrix
    gradient: Place
    operand: Place


class ElementGradient(NamedTuple):
    """Σ of the row ``gradient``: of a weight's elements from ``offset`` on."""

    weight: str
    offset: int
    gradient: Place


@dataclass(eq=False)  # found by identity
class Layout:
    """``history``: states other than the output whose values at every step backward reads.
    ``widths``: of the rows that are no state's, in units."""

    traced: Traced
    forward: Program
    backward: Program
    widths: dict[str, int]
    history: set[int]
    matrices: list[MatrixGradient]
    elements: list[ElementGradient]

    def has_blocks(self) -> bool:
        """Whether a product is one of block-diagonal matrices."""
        return any(
            group.blocks > 1
            for program in (self.forward, self.backward)
            for stage in program.stages
            for group in stage.groups
        )


def layout(traced: Traced, gates: int, host: bool = False) -> Layout:
    """``host``: for the loops of csrc/cpu/steps, whose products can be together, as ``plan`` has
    it, and which limit the gradients of tangents by grad_clip_time."""
    derived = derive(traced)
    kept = keep(traced, derived)
    widths = dict.fromkeys(("saved", "scalars", "dproduct", "acc", "acc1"), 0)
    forward, saved = _forward(traced, kept, gates * traced.hidden, widths, host)
    if host:
        _limit(traced, derived)
    backward = _Backward(traced, gates, derived, saved, widths)
    program = plan(backward.stores, host)
    return Layout(
        traced,
        forward,
        program,
        {**widths, "gx": gates * traced.hidden, "dgx": gates * traced.hidden},
        {k for k in kept.old | kept.new if k > 0},
        _merged(backward.matrices),
        _merged_elements(backward.elements),
    )


# --- forward -------------------------------------------------------------------------------------


def row_stores(g: Graph, row: Row, buffer: str) -> list[Store]:
    found, at = [], 0
    for node, width in row:
        found.append(Store(g.spread(node, width), buffer, at))
        at += width
    return found


def _forward(
    traced: Traced, kept: Kept, gx: int, widths: dict[str, int], together: bool
) -> tuple[Program, dict[Node, Place]]:
    """The program, and where the saved nodes are."""
    g = traced.graph
    states = [row_stores(g, row, f"new{k}") for k, row in enumerate(traced.states)]
    stores = [store for row in states for store in row]
    scalars = [node for node in kept.nodes if node.scalar]
    vectors = [node for node in kept.nodes if not node.scalar]
    saved = {node: Place("scalars", at, 0) for at, node in enumerate(scalars)}
    widths["scalars"] = len(scalars)
    apart = [Store(node, "saved", 0, always=False) for node in vectors]
    first = plan(
        [*stores, *apart], together
    )  # tells when each part of gx is read for the last time
    for node, offset in _in_place(vectors, first, gx).items():
        saved[node] = Place("gx", offset, node.width)
    for node in vectors:
        if node not in saved:
            saved[node] = Place("saved", widths["saved"], node.width)
            widths["saved"] += node.width
    for node, (buffer, offset, _) in saved.items():
        if not (node.op == "load" and node.attrs == (buffer, offset)):
            stores.append(Store(node, buffer, offset, always=False))
    return plan(stores, together), saved


def _in_place(nodes: Sequence[Node], program: Program, width: int) -> dict[Node, int]:
    """Which saved nodes can take the place of a part of gx that nobody reads any more."""
    loads = [node for node in program.reads if node.attrs[0] == "gx"]
    taken: list[tuple[int, int]] = []
    found: dict[Node, int] = {}

    def free(offset: int, size: int, stage: int) -> bool:
        if any(offset < last and first < offset + size for first, last in taken):
            return False
        for load in loads:
            at = load.attrs[1]
            if at >= offset + size or offset >= at + load.width:
                continue
            if (at, load.width) != (offset, size):
                return False
            if any(r > stage or (r == stage and whole) for r, whole in program.reads[load]):
                return False
        return True

    for node in nodes:
        if node.op == "load" and node.attrs[0] == "gx":
            found[node] = node.attrs[1]
            taken.append((found[node], found[node] + node.width))
    for node in nodes:
        if node in found:
            continue
        stage = program.stage_of[node]
        for offset in range(0, width - node.width + 1, node.width):
            if free(offset, node.width, stage):
                found[node] = offset
                taken.append((offset, offset + node.width))
                break
    return found


# --- backward ------------------------------------------------------------------------------------


def _limit(traced: Traced, derived: Derived) -> None:
    """grad_clip_time, of a cell with tangents: of those the gradient is the one that is limited on
    its way to the step before, and that of the state behind is its derivative, which is 0 where the
    limit is reached (``Code.handed`` does the rest)."""
    g = traced.graph
    bound = g.bound(f"bound({str(clamp_keeps_bound()).lower()})")
    for k in range(traced.tangents):
        limited, moving = (derived.rows.get(f"state{i}", []) for i in (k, traced.tangents + k))
        found = []
        for (first, d), (at, of) in itertools.product(moving, limited):
            low, high = max(first, at), min(first + d.width, at + of.width)
            if low >= high:
                continue
            one, other = g.part(d, low - first, high - low), g.part(of, low - at, high - low)
            beyond = g("or", g("gt", other, bound), g("lt", other, g("neg", bound)))
            found.append(Part(low, g("where", beyond, g.const(0.0), one)))
        if found:
            derived.rows[f"state{traced.tangents + k}"] = found


class _Backward:
    """What the backward loop stores, in terms of what it can read."""

    def __init__(
        self,
        traced: Traced,
        gates: int,
        derived: Derived,
        saved: dict[Node, Place],
        widths: dict[str, int],
    ) -> None:
        self.g, self.widths = traced.graph, widths
        self.stores: list[Store] = []
        self.matrices: list[MatrixGradient] = []
        self.elements: list[ElementGradient] = []
        self._read = self._readable(traced, saved)
        self._again: dict[Node, Node] = {}
        rows = {f"state{k}": traced.hidden for k in range(len(traced.states))}
        self._rows(derived, {"gx": gates * traced.hidden, **rows})
        self._matrices(derived)
        self._elements(derived)

    def _readable(self, traced: Traced, saved: dict[Node, Place]) -> dict[Node, Node]:
        found: dict[Node, Node] = {}
        for k, row in enumerate(traced.states):
            at = 0
            for node, width in row:
                if is_read_from_state(node):
                    found.setdefault(node, self.g.load(f"new{k}", at, width))
                at += width
        for node, (buffer, offset, width) in saved.items():
            found[node] = self.g.load(buffer, offset, width)
        return found

    def _own(self, node: Node) -> Node:
        """``node`` made of what backward reads."""
        for inner in ordered([node], stop=lambda n: n in self._again or n in self._read):
            if inner in self._read:
                self._again[inner] = self._read[inner]
            elif inner not in self._again:
                self._again[inner] = self._rebuilt(inner, [self._again[a] for a in inner.args])
        return self._again[node]

    def _rebuilt(self, node: Node, args: list[Node]) -> Node:
        g = self.g
        if not args:
            return node
        if node.op == "product":
            return g.product(list(zip(node.attrs, args, strict=True)))
        if node.op in ("rsum", "rmax"):
            return g.reduce(node.op, args[0], node.args[0].width)
        if node.op == "spread":
            return g.spread(args[0], node.width)
        return g.spread(g(node.op, *args), node.width)

    def _rows(self, derived: Derived, widths: dict[str, int]) -> None:
        """The gradients of all that a step reads: 0 where it reads nothing."""
        for name, width in widths.items():
            buffer, at = "dgx" if name == "gx" else name.replace("state", "dold"), 0
            for first, node in [*derived.rows.get(name, []), (width, None)]:
                if first > at:
                    nothing = self.g.spread(self.g.const(0.0), first - at)
                    self.stores.append(Store(nothing, buffer, at))
                if node is not None:
                    self.stores.append(Store(self._own(node), buffer, first))
                    at = first + node.width

    def _place(self, node: Node) -> Place:
        """Where the row of a product's gradient is found, which is stored if it is not yet."""
        for store in self.stores:
            if store.node is node and store.buffer in ("dgx", "dproduct"):
                return Place(store.buffer, store.offset, node.width)
        offset = self.widths["dproduct"]
        self.widths["dproduct"] += node.width
        self.stores.append(Store(node, "dproduct", offset))
        return Place("dproduct", offset, node.width)

    def _matrices(self, derived: Derived) -> None:
        for matrix, d, operand in sorted(derived.outers, key=lambda o: o.matrix):  # to be merged
            read = self._read.get(operand, operand)
            assert read.op == "load", read
            place = Place(read.attrs[0], read.attrs[1], read.width)
            self.matrices.append(MatrixGradient(matrix, self._place(self._own(d)), place))

    def _elements(self, derived: Derived) -> None:
        stored = {s.node: s for s in self.stores if s.buffer in ("dgx", "dproduct")}
        for weight, offset, d in sorted(derived.weights, key=lambda w: w[:2]):
            node = self._own(d)
            if node in stored and not node.scalar:
                place = Place(stored[node].buffer, stored[node].offset, node.width)
            else:
                buffer = "acc1" if node.scalar else "acc"
                place = Place(buffer, self.widths[buffer], node.width)
                self.widths[buffer] += max(node.width, 1)
                self.stores.append(Store(node, buffer, place.offset, add=True))
            self.elements.append(ElementGradient(weight, offset, place))


def _merged(found: list[MatrixGradient]) -> list[MatrixGradient]:
    """Those whose rows follow one another, in the weight and in memory, as one product."""
    made: list[MatrixGradient] = []
    for one in sorted(found, key=lambda m: (m.matrix.weight, m.operand, m.matrix.offset)):
        if made and _follows(made[-1], one):
            matrix, gradient, operand = made.pop()
            matrix = matrix._replace(rows=matrix.rows + one.matrix.rows)
            gradient = gradient._replace(width=gradient.width + one.gradient.width)
            one = MatrixGradient(matrix, gradient, operand)
        made.append(one)
    return made


def _merged_elements(found: list[ElementGradient]) -> list[ElementGradient]:
    """The same, of weights' elements."""
    made: list[ElementGradient] = []
    for one in sorted(found):
        if made and _continues(made[-1], one):
            weight, offset, place = made.pop()
            wider = place._replace(width=_units(place) + _units(one.gradient))
            one = ElementGradient(weight, offset, wider)
        made.append(one)
    return made


def _continues(a: ElementGradient, b: ElementGradient) -> bool:
    place, units = a.gradient, _units(a.gradient)
    next_place = (place.buffer, place.offset + units)
    return (a.weight, a.offset + units, next_place) == (b.weight, b.offset, b.gradient[:2])


def _units(place: Place) -> int:
    return max(place.width, 1)  # a single element has width 0


def _follows(a: MatrixGradient, b: MatrixGradient) -> bool:
    matrix, place = a.matrix, a.gradient
    next_row = matrix.offset + matrix.rows * matrix.row_stride
    return (
        matrix.blocks == 1
        and a.operand == b.operand
        and matrix._replace(offset=next_row, rows=b.matrix.rows) == b.matrix
        and place._replace(offset=place.offset + place.width, width=b.gradient.width) == b.gradient
    )
