"""The graph of a cell's step: traced, or of a tangent made of the graph of the cell it is of.

Forward mode goes by the same derivatives as backward does: an operator's derivative is linear in
the gradient that it is given and works unit by unit, so what it makes of a tangent of one argument
is that argument's part of the node's tangent.
"""

from __future__ import annotations

import torch

from ..cells import CellSpec
from ..cells.tangent import TangentCell
from .graph import Graph, Matrix, Node, ordered
from .operators import OPERATORS, fold
from .trace import Traced, trace
from .values import Piece, Row


def graph_of(
    spec: CellSpec,
    hidden: int,
    bias: bool,
    dtype: torch.dtype = torch.float32,
    checking: bool = False,
    blocks: bool = False,
) -> Traced:
    """As ``trace``, of any cell."""
    if not isinstance(spec, TangentCell):
        return trace(spec, hidden, bias, dtype, checking, blocks)
    assert spec.of is not None
    own = graph_of(spec.of, hidden, bias, dtype, checking, blocks)
    return _Tangent(own, spec).traced()


class _Tangent:
    def __init__(self, own: Traced, spec: TangentCell) -> None:
        self.own, self.spec, self.weights_too = own, spec, spec.weights_too
        self.g = Graph(fold, own.graph.joins)
        self.count = len(spec.states) // 2
        self.dgx = spec.gates // 2 * own.hidden
        self._same: dict[Node, Node] = {}
        self._tangents: dict[Node, Node | None] = {}

    def traced(self) -> Traced:
        for node in ordered([piece.node for row in self.own.states for piece in row]):
            args = tuple(self._same[arg] for arg in node.args)
            attrs = node.attrs
            if node.op == "load" and attrs[0].startswith("state"):
                k = int(attrs[0].removeprefix("state"))
                attrs = (f"state{self.count + k}", attrs[1])
            # by itself: it is not to become a simpler one
            same = self._same[node] = self.g._node(node.op, args, attrs, node.width)
            found = self._tangent(node, same)
            self._tangents[same] = None if found is None else self.g.spread(found, node.width)
        states = [self._row(row) for row in self.own.states]
        tangents, news = zip(*states, strict=True)
        news = (*tangents, *news)
        return Traced(self.g, news, self.own.grain, self.own.hidden, self.count)

    def _row(self, row: Row) -> tuple[Row, Row]:
        """The tangent of a new state, and the state."""
        news = tuple(Piece(self._same[node], width) for node, width in row)
        zero = self.g.const(0.0)
        return tuple(Piece(self._tangents[node] or zero, width) for node, width in news), news

    def _tangent(self, own: Node, node: Node) -> Node | None:
        """Of ``node``, which ``own`` has become; None: it is 0."""
        g = self.g
        if node.op == "load":
            name, offset = own.attrs
            if name == "gx":
                return g.load("gx", self.dgx + offset, node.width)
            return g.load(name, offset, node.width)  # the tangents are the first states
        if node.op == "param":
            weight, offset, stride = node.attrs
            if not self.weights_too:
                return None
            return g.param(self.spec.tangent_of(weight), offset, stride, node.width)
        if node.op == "const" or node.boolean:
            return None
        if node.op == "product":
            return self._of_product(node)
        given = [self._tangents[arg] for arg in node.args]
        if not any(given):
            return None
        if node.op in ("rsum", "rmax"):
            return self._of_reduction(node, given[0])
        if node.op == "spread":
            return given[0]
        if node.op == "where":
            zero = g.const(0.0)
            return g("where", node.args[0], given[1] or zero, given[2] or zero)
        return self._of_operator(node, given)

    def _of_product(self, node: Node) -> Node | None:
        terms: list[tuple[Matrix, Node]] = []
        for matrix, arg in zip(node.attrs, node.args, strict=True):
            d = self._tangents[arg]
            if d is not None:
                terms.append((matrix, d))
            if self.weights_too:
                terms.append((matrix._replace(weight=self.spec.tangent_of(matrix.weight)), arg))
        return self.g.product(terms) if terms else None

    def _of_reduction(self, node: Node, d: Node | None) -> Node:
        assert d is not None
        g, x = self.g, node.args[0]
        if node.op == "rsum":
            return g.reduce("rsum", d, x.width)
        # the mean over those that are equally large, as torch has it
        is_largest = g("where", g("eq", x, node), g.const(1.0), g.const(0.0))
        total = g.reduce("rsum", g("mul", is_largest, d), x.width)
        return g("div", total, g.reduce("rsum", is_largest, x.width))

    def _of_operator(self, node: Node, given: list[Node | None]) -> Node | None:
        g, parts = self.g, list[Node]()
        for at, d in enumerate(given):
            part = None if d is None else OPERATORS[node.op].derivative(g, node, d)[at]
            if part is not None:
                parts.append(part)
        return g.total(parts) if parts else None
