"""Backward of a step's graph: reverse mode, and what of forward it needs.

The gradient of a row that is read (gx, the old states) and of a weight's elements is a node of the
graph again. That of a matrix is a sum of outer products over all steps: which nodes, is recorded,
and made outside the loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .graph import LEAVES, Graph, Matrix, Node, ordered
from .operators import OPERATORS
from .trace import Traced
from .values import Row


class Part(NamedTuple):
    """Units [first, first + node's width) of a row, and their node."""

    first: int
    node: Node


class Outer(NamedTuple):
    """The gradient of ``matrix``: ``gradient`` times ``operand``, summed over steps and batch."""

    matrix: Matrix
    gradient: Node
    operand: Node


class OfWeight(NamedTuple):
    """The gradient of a weight's elements: ``node`` summed over steps and batch."""

    weight: str
    offset: int
    node: Node


@dataclass
class Derived:
    """``rows``: by name ("gx", "state0", …) the parts of its gradient, in order. Incoming
    gradients are loads of "dstate0", …"""

    rows: dict[str, list[Part]] = field(default_factory=dict)
    outers: list[Outer] = field(default_factory=list)
    weights: list[OfWeight] = field(default_factory=list)

    def outputs(self) -> list[Node]:
        found = [part.node for parts in self.rows.values() for part in parts]
        found += [node for outer in self.outers for node in (outer.gradient, outer.operand)]
        return found + [weight.node for weight in self.weights]


def derive(traced: Traced) -> Derived:
    """The gradients of all that the step reads, given those of its new states."""
    g = traced.graph
    got: dict[Node, list[Node]] = {}
    for k, row in enumerate(traced.states):
        at = 0
        for node, width in row:
            _give(g, got, node, g.load(f"dstate{k}", at, width))
            at += width
    found = Derived()
    read: dict[str, list[Part]] = {}
    for node in reversed(ordered([piece.node for row in traced.states for piece in row])):
        if node not in got:
            continue
        d = g.spread(g.total(got.pop(node)), node.width)
        if node.op == "load":
            name, offset = node.attrs
            read.setdefault(name, []).append(Part(offset, d))
        elif node.op == "param":
            weight, offset, _ = node.attrs
            found.weights.append(OfWeight(weight, offset, d))
        elif node.op == "product":
            for matrix, operand in zip(node.attrs, node.args, strict=True):
                found.outers.append(Outer(matrix, d, operand))
                _give(g, got, operand, g.product([(matrix.t(), d)]))
        elif node.op == "rsum":
            _give(g, got, node.args[0], d)
        elif node.op == "rmax":
            _give(g, got, node.args[0], _of_largest(g, node, d))
        elif node.op not in LEAVES:
            derivative = OPERATORS[node.op].derivative
            for arg, part in zip(node.args, derivative(g, node, d), strict=True):
                if part is not None:
                    _give(g, got, arg, part)
    for name, parts in read.items():
        found.rows[name] = _joined(g, parts)
    return found


def _give(g: Graph, got: dict[Node, list[Node]], node: Node, d: Node) -> None:
    """A contribution to the gradient of ``node``, summed where that is a scalar."""
    if node.op == "const" or node.boolean:
        return
    if node.scalar and not d.scalar:
        d = g.reduce("rsum", d, d.width)
    got.setdefault(node, []).append(d)


def _of_largest(g: Graph, node: Node, d: Node) -> Node:
    """torch shares the gradient among those that are equally large."""
    x = node.args[0]
    is_largest = g("where", g("eq", x, node), g.const(1.0), g.const(0.0))
    share = g("div", d, g.reduce("rsum", is_largest, x.width))
    return g("mul", is_largest, share)


def _joined(g: Graph, parts: list[Part]) -> list[Part]:
    """Parts that may overlap, as parts that don't."""
    cuts = sorted({cut for first, d in parts for cut in (first, first + d.width)})
    found = []
    for low, high in itertools.pairwise(cuts):
        inside = [
            g.part(d, low - first, high - low)
            for first, d in parts
            if first <= low and high <= first + d.width
        ]
        if inside:
            found.append(Part(low, g.total(inside)))
    return found


# --- what forward keeps --------------------------------------------------------------------------


class Kept(NamedTuple):
    """``nodes``: of forward, saved for backward. ``old``: states other than the output whose old
    values backward reads; ``new``: whose new ones."""

    nodes: list[Node]
    old: set[int]
    new: set[int]


def is_read_from_state(node: Node) -> bool:
    """Whether backward reads a new state's values for ``node``. A scalar is not in a row as such,
    and what is only handed through is read where it came from, if that is still there."""
    return not node.scalar and node.op not in LEAVES


class _Keeper:
    """Decides node by node; see ``keep``."""

    def __init__(self, states: Sequence[Row]) -> None:
        self.nodes: dict[Node, None] = {}
        self.old: set[int] = set()
        self.new: set[int] = set()
        self._state = {
            piece.node: k
            for k, row in reversed([*enumerate(states)])
            for piece in row
            if is_read_from_state(piece.node)
        }

    def need(self, node: Node) -> None:
        if node.boolean:  # has no place in memory: what it compares has
            for arg in node.args:
                self.need(arg)
            return
        wanted = self._missing(node)
        if not self._made_again(node) or _units(wanted) > max(node.width, 1):
            wanted = {node: None}
        self.nodes.update(wanted)
        self._note(node)

    def _made_again(self, node: Node) -> bool:
        """Whether backward computes it, from what else is kept."""
        if self._is_free(node) or node in self.nodes:
            return True
        if node.op in ("product", "rsum", "load"):
            return False
        if node.op == "rmax":  # who is largest is asked of the same numbers again
            return True
        if OPERATORS[node.op].cheap:
            return True
        return not self._missing(node) and not self._reads_kept(node)

    def drop(self, wanted: Callable[[Node], bool]) -> None:
        """What cheap operations make of what else is kept, but for nodes that are ``wanted``."""
        for node in reversed(list(self.nodes)):
            if wanted(node) or node.op not in OPERATORS or not OPERATORS[node.op].cheap:
                continue
            del self.nodes[node]
            if self._missing(node):
                self.nodes[node] = None
            else:
                self._note(node)

    def _is_free(self, node: Node) -> bool:
        old_state = node.op == "load" and node.attrs[0].startswith("state")
        return old_state or node.op in ("param", "const") or node in self._state

    def _missing(self, node: Node) -> dict[Node, None]:
        """What would have to be saved to make ``node`` again."""
        if self._is_free(node) or node in self.nodes:
            return {}
        if not node.args or node.op in ("product", "rsum"):
            return {node: None}
        found: dict[Node, None] = {}
        for arg in node.args:
            found.update(self._missing(arg) if self._made_again(arg) else {arg: None})
        return found

    def _reads_kept(self, node: Node) -> bool:
        return any(arg in self.nodes or self._reads_kept(arg) for arg in self._inner(node))

    def _inner(self, node: Node) -> tuple[Node, ...]:
        return () if self._is_free(node) else node.args

    def _note(self, node: Node) -> None:
        """Which states' values are read to make it again."""
        if node in self.nodes:
            return
        if node in self._state:
            self.new.add(self._state[node])
        elif node.op == "load":
            self.old.add(int(node.attrs[0].removeprefix("state")))
        else:
            for arg in node.args:
                self._note(arg)


def keep(traced: Traced, derived: Derived) -> Kept:
    """What forward saves: of all that backward needs the costly values first; a cheap one only
    where more would have to be saved to make it again."""
    forward = set(ordered([piece.node for row in traced.states for piece in row]))
    nodes = ordered(derived.outputs(), stop=lambda node: node in forward)
    needed = [node for node in nodes if node in forward]
    operands = {outer.operand for outer in derived.outers}
    largest = {node.args[0] for node in needed if node.op == "rmax"}
    keeper = _Keeper(traced.states)
    for node in needed:
        if node in operands and node.op not in LEAVES:
            keeper.nodes[node] = None  # products over all steps read it from memory
        if node.op == "rmax" and not keeper._is_free(node.args[0]):
            # who is largest is asked of it again, in a loop that may round what it makes otherwise
            keeper.nodes[node.args[0]] = None
    for node in sorted(needed, key=_rank):
        keeper.need(node)
    keeper.drop(lambda node: node in operands or node in largest)
    for outer in derived.outers:
        keeper._note(outer.operand)
    return Kept(_used(keeper, needed), keeper.old, keeper.new)


def _units(nodes: Iterable[Node]) -> int:
    """Of memory; a row's scalars count for nothing."""
    return sum(node.width for node in nodes)


def _rank(node: Node) -> int:
    """Costly ones first; last a row's largest, which is made again of the row that is kept."""
    if node.op in OPERATORS and not OPERATORS[node.op].cheap:
        return 0
    return 2 if node.op in ("rmax", "most") else 1


def _used(keeper: _Keeper, needed: Iterable[Node]) -> list[Node]:
    """Of what was kept what is read when all is made again."""
    kept = keeper.nodes
    free = keeper._is_free
    read = ordered(needed, stop=lambda node: node in kept or free(node))
    return [node for node in read if node in kept]
