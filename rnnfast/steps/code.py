"""What the texts of all kernels in C++ share: operands, numbers, and expressions of nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .graph import REDUCTIONS, Matrix, Node
from .operators import OPERATORS
from .stages import Group, Program, Store

_LITERALS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0)


@dataclass
class Needs:
    """What the generated classes are given at run time, by the numbers that the text uses."""

    hidden: int
    weights: list[str] = field(default_factory=list)
    views: list[Matrix] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)

    def weight(self, name: str) -> int:
        return _index(self.weights, name)

    def constant(self, value: float) -> str:
        if value in _LITERALS:
            return f"S({value})"
        return f"constant({_index(self.constants, value)})"

    def units(self, number: int) -> str:
        """A number of units by H, so that the text is the same for every H."""
        part = Fraction(number, self.hidden)
        if part == 0:
            return "0"
        text = "H" if part.numerator == 1 else f"{part.numerator} * H"
        return text if part.denominator == 1 else f"{text} / {part.denominator}"


def _index(found: list[Any], value: Any) -> int:
    if value not in found:
        found.append(value)
    return found.index(value)


@dataclass
class Class:
    """A generated class: its text, the rows it names by their numbers, its products."""

    text: str
    buffers: list[str]


class Emitter:
    """Of a program: what its text names, by numbers."""

    def __init__(self, name: str, program: Program, needs: Needs) -> None:
        self.name, self.program, self.needs = name, program, needs
        self.buffers: list[str] = []

    def number(self, buffer: str) -> int:
        return _index(self.buffers, buffer)

    def views(self, group: Group) -> int:
        """Where those of its matrices begin: of each product, term by term."""
        first, terms = len(self.needs.views), group.terms(self.program.operand)
        for plane in range(len(group.nodes)):
            for matrix in (term.matrices[plane] for term in terms):
                self.needs.weight(matrix.weight)
                self.needs.views.append(matrix)
        return first


class Code:
    """Lines that define values, each once. ``outer``: whose scalars can be used."""

    def __init__(
        self, own: Emitter, stage: int, names: dict[Node, str], outer: Code | None = None
    ) -> None:
        self.own, self.stage, self.outer = own, stage, outer
        self.names, self.lines = dict(names), list[str]()
        self.stores = list[str]()  # after all that is read: they may take its place

    # --- what each language says in its own way ------------------------------------------------

    def row(self, name: str) -> str:
        """A pointer to the sequence's row of a buffer."""
        raise NotImplementedError

    def load(self, name: str, offset: int) -> str:
        """Of a buffer, a unit that stands ``offset`` behind j."""
        raise NotImplementedError

    def loaded(self, address: str) -> str:
        raise NotImplementedError

    def stored(self, address: str, value: str) -> str:
        raise NotImplementedError

    def handed(self, value: str, buffer: str) -> str:
        """What is left of a gradient on its way to the step before, which reads ``buffer``."""
        raise NotImplementedError

    def load_scalar(self, name: str, index: int) -> str:
        raise NotImplementedError

    def kept(self, index: int) -> str:
        """A reduction that an earlier stage has made."""
        raise NotImplementedError

    # --- what is the same -------------------------------------------------------------------------

    def store(self, store: Store) -> None:
        node, buffer, offset, add, always = store
        value = self.vector(node)
        to = self.address(self.row(buffer), offset)
        if add:
            value = f"{self.loaded(to)} + {value}"
        if buffer.startswith("dold"):
            value = self.handed(value, buffer)
        condition = "" if always else "if (training()) "
        self.stores.append(f"{condition}{self.stored(to, value)};")

    def body(self, stores: Iterable[Store]) -> list[str]:
        """The lines that make ``stores``."""
        for store in stores:
            self.store(store)
        return self.lines + self.stores

    def address(self, row: str, offset: int) -> str:
        return f"{row} + {self.own.needs.units(offset)} + j"

    def vector(self, node: Node) -> str:
        """A name or an expression of its value in a vector of units."""
        if node.scalar:
            value = self.scalar(node)
            return value if node.boolean else f"V({value})"
        if node not in self.names:
            kind = "auto" if node.boolean else "V"
            text = self._vector(node)
            self.names[node] = f"v{node.index}"
            self.lines.append(f"const {kind} v{node.index} = {text};")
        return self.names[node]

    def _vector(self, node: Node) -> str:
        needs, program = self.own.needs, self.own.program
        if node.op == "load":
            return self.load(node.attrs[0], node.attrs[1])
        if node.op == "param":
            weight, offset, _ = node.attrs
            return self.loaded(self.address(f"weight({needs.weight(weight)})", offset))
        earlier = program.stage_of[node] < self.stage
        if (earlier and node in program.at) or node.op == "product":
            return self.load(*program.at[node])
        return self._operator(node, self.vector)

    def scalar(self, node: Node) -> str:
        if node.op == "const":
            value, text = node.attrs
            return self.own.needs.constant(value) if text == repr(value) else str(text)
        if self.outer is not None:
            return self.outer.scalar(node)
        if node not in self.names:
            text = self._scalar(node)
            self.names[node] = f"s{node.index}"
            kind = "bool" if node.boolean else "S"
            self.lines.append(f"const {kind} s{node.index} = {text};")
        return self.names[node]

    def _scalar(self, node: Node) -> str:
        if node.op == "load":
            return self.load_scalar(node.attrs[0], node.attrs[1])
        if node.op == "param":
            weight, offset, _ = node.attrs
            return f"weight({self.own.needs.weight(weight)})[{offset}]"
        if node.op in REDUCTIONS:
            return self.kept(self.own.program.scalars[node])
        return self._operator(node, self.scalar)

    def _operator(self, node: Node, argument: Callable[[Node], str]) -> str:
        return OPERATORS[node.op].text.format(*(argument(arg) for arg in node.args))


def indented(depth: int, lines: list[str]) -> list[str]:
    return ["  " * depth + line for line in lines]
