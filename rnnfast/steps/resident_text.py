"""CUDA C++ of a cell's pass in one launch: a class as csrc/cuda/steps/resident.h wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .code import Needs, indented
from .graph import Node, ordered
from .layout import Layout
from .operators import OPERATORS
from .resident import MMA, Shape, Step
from .source import Source
from .stages import Store

STATES = {"forward": "new", "backward": "dold"}  # the rows that say how states begin and end


def resident_source(pass_name: str, layout: Layout, step: Step, shape: Shape) -> Source:
    """The file of a pass, and what is to be passed to it."""
    made = _Pass(pass_name, layout, step)
    lines = ['#include "cuda/steps/resident_loop.h"', "", "namespace rnnfast::cuda::steps {", ""]
    lines += [*made.text(), "", "}  // namespace rnnfast::cuda::steps", ""]
    own = f"rnnfast::cuda::steps::Own, rnnfast::cuda::{MMA[shape.math]}"
    lines += [f"RNNFAST_RESIDENT({pass_name}, {own}, {shape.groups}, {shape.held})", ""]
    rows = {name: made.buffers if name == pass_name else [] for name in STATES}
    return Source("\n".join(lines), layout, made.needs, rows["forward"], rows["backward"])


def facts(pass_name: str, layout: Layout, step: Step) -> tuple[int, int]:
    """Parameters of a unit, and numbers that a thread has of a unit and sequence."""
    made = _Pass(pass_name, layout, step)
    made.text()
    live = made.states + len(made.reads) + len(made.writes) + len(made.kept) + len(made.added)
    live += made.states if pass_name == "backward" else len(step.products)
    return len(made.params), live


@dataclass
class _Pass:
    pass_name: str
    layout: Layout
    step: Step
    buffers: list[str] = field(default_factory=list)
    params: list[tuple[int, int]] = field(default_factory=list)
    reads: list[tuple[str, int]] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.H = self.layout.traced.hidden
        self.states = len(self.layout.traced.states)
        self.needs = Needs(self.H)
        state = STATES[self.pass_name]
        own = [s for s in self.step.stores if not s.buffer.startswith(state)]
        self.added = [s for s in own if s.add]
        self.writes = [s for s in own if not s.add]
        self.ends = {int(s.buffer.removeprefix(state)): s for s in self.step.stores if s not in own}

    # --- what is numbered ---------------------------------------------------------------------

    def buffer(self, name: str) -> int:
        return _number(self.buffers, name)

    def param(self, node: Node) -> str:
        weight, offset, _ = node.attrs
        return f"g.param({_number(self.params, (self.needs.weight(weight), offset // self.H))})"

    def read(self, name: str, offset: int) -> str:
        return f"in[{_number(self.reads, (name, offset))}]"

    def element(self, name: str, offset: int) -> str:
        width = self.layout.widths.get(name, self.H) // self.H
        old = "true" if name.startswith("state") else "false"
        return f"{{{self.buffer(name)}, {offset // self.H}, {width}, {old}}}"

    # --- the text -----------------------------------------------------------------------------

    def text(self) -> list[str]:
        functions = self._forward() if self.pass_name == "forward" else self._backward()
        state, states = STATES[self.pass_name], range(self.states)
        lists = [
            _list("Element", "read", [self.element(*one) for one in self.reads]),
            _list("Element", "write", [self.element(s.buffer, s.offset) for s in self.writes]),
            _list("Param", "param", [f"{{{w}, {o}}}" for w, o in self.params]),
            _list("int", "state", [str(self.buffer(f"{state}{k}")) for k in states]),
        ]
        counts = {"Planes": len(self.step.gates), "Params": len(self.params)}
        counts |= {"States": self.states, "Reads": len(self.reads), "Writes": len(self.writes)}
        if self.pass_name == "backward":
            outputs = [str(self.buffer(f"dy{k}")) for k in states]
            lists.append(_list("int", "output", outputs))
            added = [self.element(s.buffer, s.offset) for s in self.added]
            lists.append(_list("Element", "added", added))
            counts |= {"Kept": len(self.kept), "Added": len(self.added)}
        counts |= {"Buffers": len(self.buffers), "Weights": len(self.needs.weights)}
        counts["Constants"] = len(self.needs.constants)
        gates = _chain(self.step.gates)
        backward = "true" if self.pass_name == "backward" else "false"
        return [
            "struct Own : ResidentMath {",
            f"  static constexpr bool kBackward = {backward};",
            *(f"  static constexpr int k{name} = {n};" for name, n in counts.items()),
            f"  RNNFAST_HD static constexpr int gate(int p) {{ return {gates}; }}",
            *indented(1, [line for lines in lists for line in lines]),
            "",
            *indented(1, functions),
            "};",
        ]

    def _forward(self) -> list[str]:
        before = _Code(self, {})
        before.lines.append(f"return {before.value(self.step.operands[0])};")
        code = _Code(self, {n: f"x[{k}]" for k, n in enumerate(self.step.products)})
        stored = [f"news[{k}] = {code.value(s.node)};" for k, s in sorted(self.ends.items())]
        stored += code.stored("out", self.writes)
        return [
            *_function("float", "operand", ["const float* s"], before.lines),
            "",
            *_function(
                "void",
                "step",
                [
                    "const float* in",
                    "const float* s",
                    "const float* x",
                    "float* news",
                    "float* out",
                ],
                code.lines + stored,
            ),
        ]

    def _backward(self) -> list[str]:
        behind, (product,) = self.step.behind, self.step.products
        stores = [*self.added, *self.ends.values()]
        last = ordered(s.node for s in stores if s.node in behind)
        self.kept = [node for node in _frontier(last, behind) if node.op not in ("const", "param")]
        before = _Code(self, {})
        names = [before.value(node) for node in self.step.operands]
        stored = [f"q[{k}] = {name};" for k, name in enumerate(names)]
        stored += before.stored("kept", self.kept)
        stored += before.stored("out", self.writes)
        stored += self._rest(before, False)
        after = _Code(self, {product: "x"} | {n: f"kept[{k}]" for k, n in enumerate(self.kept)})
        more = self._rest(after, True)
        return [
            *_function(
                "void",
                "before",
                ["const float* in", "const float* d", "float* q", "float* kept", "float* out"],
                before.lines + stored,
                ["float* ds", "float* add"],
            ),
            "",
            *_function(
                "void",
                "after",
                ["float x", "const float* kept", "float* ds", "float* add"],
                after.lines + more,
            ),
        ]

    def _rest(self, code: _Code, behind: bool) -> list[str]:
        """Of the states' gradients, and of what is added up, those that need the product or not."""
        lines = []
        for k, store in sorted(self.ends.items()):
            if (store.node in self.step.behind) == behind:
                lines.append(f"ds[{k}] = {code.value(store.node)};")
        for k, store in enumerate(self.added):
            if (store.node in self.step.behind) == behind:
                lines.append(f"add[{k}] = add[{k}] + {code.value(store.node)};")
        return lines


class _Code:
    """Lines that define values, each once."""

    def __init__(self, own: _Pass, names: dict[Node, str]) -> None:
        self.own, self.names, self.lines = own, dict(names), list[str]()

    def value(self, node: Node) -> str:
        if node.op == "const":
            text = self.own.needs.constant(node.attrs[0])
            return f"g.{text}" if text.startswith("constant") else text
        if node not in self.names:
            for inner in ordered([node], stop=lambda n: n in self.names):
                if inner not in self.names and inner.op != "const":
                    self._define(inner)
        return self.names[node]

    def _define(self, node: Node) -> None:
        text = self._text(node)
        self.names[node] = f"v{node.index}"
        kind = "bool" if node.boolean else "V"
        self.lines.append(f"const {kind} v{node.index} = {text};")

    def _text(self, node: Node) -> str:
        if node.op == "param":
            return self.own.param(node)
        if node.op == "load":
            return self._load(*node.attrs)
        return OPERATORS[node.op].text.format(*(self.value(arg) for arg in node.args))

    def _load(self, name: str, offset: int) -> str:
        if name.startswith("dstate"):
            return f"d[{name.removeprefix('dstate')}]"
        if name.startswith("state") and self.own.pass_name == "forward":
            return f"s[{name.removeprefix('state')}]"
        return self.own.read(name, offset)

    def stored(self, array: str, stores: Iterable[Store] | Sequence[Node]) -> list[str]:
        nodes = [store.node if isinstance(store, Store) else store for store in stores]
        return [f"{array}[{k}] = {self.value(node)};" for k, node in enumerate(nodes)]


def _frontier(nodes: Sequence[Node], behind: frozenset[Node]) -> list[Node]:
    """What those behind the product read of those before it."""
    found = {arg: None for n in nodes if n in behind and n.op != "product" for arg in n.args}
    return [node for node in found if node not in behind]


def _number(found: list[Any], value: Any) -> int:
    if value not in found:
        found.append(value)
    return found.index(value)


def _chain(values: Sequence[int]) -> str:
    if list(values) == list(range(len(values))):
        return "p"
    *first, last = values
    return "".join(f"p == {k} ? {v} : " for k, v in enumerate(first)) + str(last)


def _list(kind: str, name: str, elements: Sequence[str]) -> list[str]:
    """A function of a number; the text must have it also where nobody calls it."""
    return [
        f"RNNFAST_HD static constexpr {kind} {name}(int n) {{",
        f"  const {kind} all[] = {{{', '.join(elements) or '{}'}}};",
        "  return all[n];",
        "}",
    ]


def _function(
    kind: str, name: str, given: Sequence[str], lines: list[str], more: Sequence[str] = ()
) -> list[str]:
    arguments = ", ".join(["const Given<Own>& g", *given, *more])
    return [f"RNNFAST_DEVICE static {kind} {name}({arguments}) {{", *indented(1, lines), "}"]
