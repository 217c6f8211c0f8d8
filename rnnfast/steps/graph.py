"""A small graph of what a step computes for one sequence.

A node is a vector of ``width`` neighbouring units, or a scalar of the row (width 0). Leaves are
``load`` (a part of a named row, at an offset), ``param`` (a part of a weight's elements), and
``const``. A ``product`` is a sum of matrices times nodes; ``rsum`` and ``rmax`` reduce a vector to
a scalar; everything else is pointwise (``operators``). Equal nodes are one node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

LEAVES = ("load", "param", "const")
REDUCTIONS = ("rsum", "rmax")


class Matrix(NamedTuple):
    """A strided view of a weight's elements: output row r, column k is at offset + r·rs + k·cs."""

    weight: str
    offset: int
    rows: int
    cols: int
    row_stride: int
    col_stride: int

    def t(self) -> Matrix:
        return Matrix(
            self.weight, self.offset, self.cols, self.rows, self.col_stride, self.row_stride
        )

    def part(self, first: int, rows: int) -> Matrix:
        """Some of its rows."""
        return self._replace(offset=self.offset + first * self.row_stride, rows=rows)


@dataclass(frozen=True, eq=False)
class Node:
    """``attrs``: of a load (name, offset), of a param (weight, offset, stride), of a const its
    value, of a product its matrices, one for each argument. ``boolean``: a condition."""

    index: int
    op: str
    args: tuple[Node, ...]
    attrs: tuple[Any, ...]
    width: int
    boolean: bool = False

    @property
    def scalar(self) -> bool:
        return self.width == 0

    def __repr__(self) -> str:
        inner = ", ".join([*(f"n{a.index}" for a in self.args), *(str(a) for a in self.attrs)])
        return f"n{self.index}[{self.width}] = {self.op}({inner})"


BOOLEAN = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"})
_IDENTITIES: dict[str, tuple[float, bool]] = {  # the value that changes nothing; also on the left
    "add": (0.0, True),
    "sub": (0.0, False),
    "mul": (1.0, True),
    "div": (1.0, False),
}


class Graph:
    """Makes nodes, each once. ``fold``: the value of an operator of constants, None for no
    number."""

    def __init__(self, fold: Callable[[str, Sequence[float]], float | None]) -> None:
        self._known: dict[tuple[Any, ...], Node] = {}
        self._fold = fold

    def _node(self, op: str, args: tuple[Node, ...], attrs: tuple[Any, ...], width: int) -> Node:
        key = (op, args, attrs, width)
        found = self._known.get(key)
        if found is None:
            found = Node(len(self._known), op, args, attrs, width, op in BOOLEAN)
            self._known[key] = found
        return found

    def nodes(self) -> list[Node]:
        return list(self._known.values())

    def const(self, value: float) -> Node:
        return self._node("const", (), (float(value), repr(float(value))), 0)

    def load(self, name: str, offset: int, width: int) -> Node:
        return self._node("load", (), (name, offset), width)

    def param(self, weight: str, offset: int, stride: int, width: int) -> Node:
        return self._node("param", (), (weight, offset, stride), width)

    def product(self, terms: Sequence[tuple[Matrix, Node]]) -> Node:
        matrices, nodes = zip(*terms, strict=True)
        return self._node("product", tuple(nodes), tuple(matrices), matrices[0].rows)

    def reduce(self, op: str, node: Node, width: int) -> Node:
        """The sum or the largest of ``node`` over a row part of ``width`` units."""
        if node.scalar:
            return node if op == "rmax" else self("mul", node, self.const(width))
        return self._node(op, (node,), (), 0)

    def spread(self, node: Node, width: int) -> Node:
        """``node`` for ``width`` units (0: as a scalar), also where it is a scalar."""
        return self._node("spread", (node,), (), width) if node.width < width else node

    def __call__(self, op: str, *args: Node) -> Node:
        """A pointwise node; a scalar argument stands for all units."""
        width = max(arg.width for arg in args)
        for arg in args:
            assert arg.width in (0, width), (op, args)
        simpler = self._simpler(op, args, width)
        return self._node(op, args, (), width) if simpler is None else simpler

    def _simpler(self, op: str, args: tuple[Node, ...], width: int) -> Node | None:
        if op in _IDENTITIES:
            value, both = _IDENTITIES[op]
            a, b = args
            if _is(b, value):
                return a if a.width == width else None
            if both and _is(a, value):
                return b if b.width == width else None
        if op == "neg" and args[0].op == "neg":
            return args[0].args[0]
        if all(arg.op == "const" for arg in args):
            folded = self._fold(op, [arg.attrs[0] for arg in args])
            return None if folded is None else self.const(folded)
        return None

    def part(self, node: Node, first: int, width: int) -> Node:
        """``width`` units of ``node`` from ``first`` on."""
        if node.scalar or (first == 0 and width == node.width):
            return node
        if node.op == "load":
            name, offset = node.attrs
            return self.load(name, offset + first, width)
        if node.op == "param":
            weight, offset, stride = node.attrs
            return self.param(weight, offset + first * stride, stride, width)
        if node.op == "product":
            terms = zip(node.attrs, node.args, strict=True)
            return self.product([(m.part(first, width), arg) for m, arg in terms])
        if node.op == "spread":
            return self.spread(node.args[0], width)
        return self(node.op, *(self.part(arg, first, width) for arg in node.args))

    def total(self, nodes: Sequence[Node]) -> Node:
        """Their sum; products become one."""
        products = [node for node in nodes if node.op == "product"]
        rest = [node for node in nodes if node.op != "product"]
        if len(products) > 1:
            terms = [t for p in products for t in zip(p.attrs, p.args, strict=True)]
            products = [self.product(terms)]
        found, *more = [*rest, *products]
        for node in more:
            found = self("add", found, node)
        return found


def _is(node: Node, value: float) -> bool:
    return node.op == "const" and node.attrs[0] == value


def ordered(outputs: Iterable[Node], stop: Callable[[Node], bool] | None = None) -> list[Node]:
    """All nodes that ``outputs`` need, each after its arguments. ``stop``: whose arguments are not
    looked at."""
    found: dict[Node, None] = {}
    stack = [(node, False) for node in reversed(list(outputs))]
    while stack:
        node, ready = stack.pop()
        if node in found:
            continue
        if ready or (stop is not None and stop(node)):
            found[node] = None
            continue
        stack.append((node, True))
        stack += [(arg, False) for arg in reversed(node.args)]
    return list(found)
