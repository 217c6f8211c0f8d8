"""A small graph of what a step computes for one sequence.

A node is a vector of ``width`` neighbouring units, or a scalar of the row (width 0). Leaves are
``load`` (a part of a named row, at an offset), ``param`` (a part of a weight's elements), and
``const``. A ``product`` is a sum of matrices times nodes; ``rsum`` and ``rmax`` reduce a vector to
a scalar; everything else is pointwise (``operators``). Equal nodes are one node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

LEAVES = ("load", "param", "const")
REDUCTIONS = ("rsum", "rmax")


class Matrix(NamedTuple):
    """A strided view of a weight's elements: output row r, column k is at offset + r·rs + k·cs.

    With ``blocks`` it is block-diagonal: ``rows`` and ``cols`` are of all blocks, block b begins
    ``block_stride``·b further on, and r and k are counted within it. Only a trace that was asked
    for blocks has such ones.
    """

    weight: str
    offset: int
    rows: int
    cols: int
    row_stride: int
    col_stride: int
    blocks: int = 1
    block_stride: int = 0

    def t(self) -> Matrix:
        return self._replace(
            rows=self.cols,
            cols=self.rows,
            row_stride=self.col_stride,
            col_stride=self.row_stride,
        )

    @property
    def is_dense(self) -> bool:
        """Whether its elements are neighbours in memory, row after row."""
        rows, cols = self.rows // self.blocks, self.cols // self.blocks
        apart = self.blocks > 1 and self.block_stride != rows * cols
        return self.col_stride == 1 and (self.row_stride == cols or rows == 1) and not apart

    def part(self, first: int, rows: int) -> Matrix:
        """Some of its rows, of a matrix without blocks."""
        return self._replace(offset=self.offset + first * self.row_stride, rows=rows)

    def some_blocks(self, first: int, count: int) -> Matrix:
        return self._replace(
            offset=self.offset + first * self.block_stride,
            rows=self.rows // self.blocks * count,
            cols=self.cols // self.blocks * count,
            blocks=count,
            block_stride=self.block_stride if count > 1 else 0,
        )


class Crossing(Exception):
    """A part is asked for of a block-diagonal product that goes across its blocks."""


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
    number. ``joins``: how wide nodes become that are put together from parts; 0: none."""

    def __init__(
        self, fold: Callable[[str, Sequence[float]], float | None], joins: int = 0
    ) -> None:
        self.joins = joins
        self._known: dict[tuple[Any, ...], Node] = {}
        self._joined: dict[tuple[Node, ...], Node | None] = {}
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

    def bound(self, text: str) -> Node:
        """That of grad_clip_time, which ``text`` is in the loops of csrc/cpu/steps."""
        return self._node("const", (), (math.inf, text), 0)

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
            return self._part_of_product(node, first, width)
        if node.op == "spread":
            return self.spread(node.args[0], width)
        return self(node.op, *(self.part(arg, first, width) for arg in node.args))

    def _part_of_product(self, node: Node, first: int, width: int) -> Node:
        terms = list(zip(node.attrs, node.args, strict=True))
        if node.attrs[0].blocks == 1:
            return self.product([(m.part(first, width), arg) for m, arg in terms])
        rows = node.width // node.attrs[0].blocks
        low, high = first // rows, -(-(first + width) // rows)
        if high - low > 1 and (first % rows or width % rows):
            raise Crossing
        found = []
        for matrix, arg in terms:
            columns = matrix.cols // matrix.blocks
            operand = self.part(arg, low * columns, (high - low) * columns)
            found.append((matrix.some_blocks(low, high - low), operand))
        return self.part(self.product(found), first - low * rows, width)

    def joined(self, nodes: Sequence[Node]) -> Node | None:
        """The node whose parts, one behind the other, ``nodes`` are, if there is one: the other
        way of ``part``. Products of blocks that are evenly spaced become one."""
        key = tuple(nodes)
        if len(key) == 1:
            return key[0]
        if key not in self._joined:
            self._joined[key] = self._join(key)
        return self._joined[key]

    def _join(self, nodes: tuple[Node, ...]) -> Node | None:
        first, width = nodes[0], sum(node.width for node in nodes)
        if first.scalar:
            return first if all(node is first for node in nodes) else None
        if any((n.op, len(n.args), n.scalar) != (first.op, len(first.args), False) for n in nodes):
            return None
        if first.op in ("load", "param"):
            name, offset, stride = first.attrs if first.op == "param" else (*first.attrs, 1)
            for node in nodes:
                if (node.attrs[:2], node.attrs[2:]) != ((name, offset), first.attrs[2:]):
                    return None
                offset += node.width * stride
            return self._node(first.op, (), first.attrs, width)
        if first.op == "product":
            return self._join_products(nodes)
        args = []
        for same in zip(*(node.args for node in nodes), strict=True):
            arg = self.joined(same)
            if arg is None:
                return None
            args.append(arg)
        return self.spread(args[0], width) if first.op == "spread" else self(first.op, *args)

    def _join_products(self, nodes: tuple[Node, ...]) -> Node | None:
        """Block by block, each with its own part of the operands."""
        terms = []
        for k, first in enumerate(nodes[0].attrs):
            matrices = [node.attrs[k] for node in nodes]
            stride = matrices[1].offset - first.offset
            if first.blocks > 1 or any(
                m != first._replace(offset=first.offset + at * stride)
                for at, m in enumerate(matrices)
            ):
                return None
            operand = self.joined([node.args[k] for node in nodes])
            if operand is None or operand.scalar:
                return None
            rows, cols, count = first.rows * len(nodes), first.cols * len(nodes), len(nodes)
            wider = first._replace(rows=rows, cols=cols, blocks=count, block_stride=stride)
            terms.append((wider, operand))
        return self.product(terms)

    def total(self, nodes: Sequence[Node]) -> Node:
        """Their sum; products become one, those of as many blocks."""
        rest = [node for node in nodes if node.op != "product"]
        apart: dict[int, list[tuple[Matrix, Node]]] = {}
        for node in (node for node in nodes if node.op == "product"):
            terms = apart.setdefault(node.attrs[0].blocks, [])
            terms += zip(node.attrs, node.args, strict=True)
        found, *more = [*rest, *(self.product(terms) for terms in apart.values())]
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
