"""C++ of a program: one class for forward, one for backward, over csrc/cpu/steps/loop.h."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .graph import REDUCTIONS, Matrix, Node
from .operators import OPERATORS
from .stages import Group, Program, Stage, Store

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


def emit(name: str, program: Program, needs: Needs, backward: bool) -> Class:
    return _Class(name, program, needs, backward).made()


class _Class:
    def __init__(self, name: str, program: Program, needs: Needs, backward: bool) -> None:
        self.name, self.program, self.needs, self.backward = name, program, needs, backward
        self.buffers: list[str] = []
        self.products: list[Group] = []
        self.members: list[str] = []

    def made(self) -> Class:
        steps: list[str] = []
        for index, stage in enumerate(self.program.stages):
            steps += self._stage(index, stage)
        pack = [line for k, group in enumerate(self.products) for line in self._pack(k, group)]
        shapes = [
            f"if (k == {k}) return {{{len(g.nodes)}, {self.needs.units(g.width)}, "
            f"{self.needs.units(sum(arg.width for arg in g.operands))}, {g.blocks}}};"
            for k, g in enumerate(self.products)
        ]
        lines = [
            "template <class S>",
            f"class {self.name} : public Pass<{self.name}<S>, S, {len(self.products)}> {{",
            f"  using Base = Pass<{self.name}<S>, S, {len(self.products)}>;",
            "  using V = Vec<S>;",
            "  using Base::constant, Base::every, Base::handed, Base::held, Base::H, Base::L;",
            "  using Base::largest, Base::sum, Base::training, Base::units, Base::weight;",
            "",
            " public:",
            "  using Base::Base;",
            f"  static constexpr int kBuffers = {len(self.buffers)};",
            f"  static constexpr int kScalars = {len(self.program.scalars)};",
            f"  static constexpr bool kBackward = {'true' if self.backward else 'false'};",
            "",
            "  static constexpr Product product(int k, int64_t H) {",
            *_in(2, [*shapes, "return {1, H, H, 1};"]),
            "  }",
            "",
            "  void pack(const Place& place) {",
            *_in(2, pack),
            "  }",
            "",
            "  void step(const Place& place, const Live<S>& live) {",
            *_in(2, steps),
            "  }",
            "",
            " private:",
            *_in(1, self.members),
            "};",
        ]
        return Class("\n".join(lines) + "\n", self.buffers)

    def row(self, name: str) -> str:
        return f"live.p[{_index(self.buffers, name)}][i]"

    # --- stages -----------------------------------------------------------------------------------

    def _stage(self, index: int, stage: Stage) -> list[str]:
        if stage.fused:
            wait = [] if self._goes_on(index, stage) else ["place.wait();"]
            return [f"// stage {index}", *self._fused(index, stage), *wait]
        lines = [f"// stage {index}"]
        for group in stage.groups:
            lines += self._apart(group)
        if stage.groups:
            lines.append("place.wait();")
        if stage.stores or stage.waves:
            lines += [f"rows{index}(place, live);", "place.wait();"]
            self.members += self._rows(index, stage)
        return lines

    def _goes_on(self, index: int, stage: Stage) -> bool:
        """Whether a thread may begin the next step without waiting for the others: it reads there
        only what it has written itself, and writes nothing that others still read."""
        first, last = self.program.stages[0], len(self.program.stages) - 1
        if not self.backward or index != last or index == 0 or first.groups or first.waves:
            return False
        (group,) = stage.groups
        alike = len(group.nodes) == group.blocks == 1 and {s.node.width for s in first.stores} == {
            group.width
        }
        return alike and all(self._operand(arg)[0] != "tmp" for arg in group.operands)

    def _pack(self, k: int, group: Group) -> Iterator[str]:
        first, order = len(self.needs.views), self._order(group)
        for matrices in group.matrices:
            for term in order:
                self.needs.weight(matrices[term].weight)
                self.needs.views.append(matrices[term])
        widths = ", ".join(self.needs.units(group.operands[term].width) for term in order)
        yield f"const int64_t K{k}[] = {{{widths}}};"
        yield (
            f"this->template pack_product<{len(group.nodes)}>(place, {k}, {first}, "
            f"{len(group.operands)}, K{k});"
        )

    def _multiply(self, group: Group, done: list[str]) -> list[str]:
        k = len(self.products)
        self.products.append(group)
        runs: list[tuple[str, int, int]] = []  # (row, first, last) of operands side by side
        for arg in (group.operands[term] for term in self._order(group)):
            name, offset = self._operand(arg)
            if runs and group.blocks == 1 and (name, offset) == (runs[-1][0], runs[-1][2]):
                offset = runs.pop()[1]
            runs.append((name, offset, self._operand(arg)[1] + arg.width))
        segments = [
            f"{{live.p[{_index(self.buffers, name)}], {self.needs.units(last - first)}, "
            f"{self.needs.units(first)}}}"
            for name, first, last in runs
        ]
        return [
            "{",
            f"  const Segment<S> segments[] = {{{', '.join(segments)}}};",
            f"  this->template multiply<{len(group.nodes)}>(",
            f"      place, live, {k}, segments,",
            "      [&](int64_t i, int64_t j, int64_t n, const V* x) {",
            *_in(3, done),
            "      });",
            "}",
        ]

    def _order(self, group: Group) -> list[int]:
        """Of the operands, as they lie in memory."""
        return sorted(
            range(len(group.operands)), key=lambda term: self._operand(group.operands[term])
        )

    def _operand(self, node: Node) -> tuple[str, int]:
        if node.op == "load":
            return str(node.attrs[0]), int(node.attrs[1])
        return self.program.at[node]

    def _apart(self, group: Group) -> list[str]:
        """A product whose sums go to memory."""
        done = []
        for plane, node in enumerate(group.nodes):
            buffer, offset = self.program.at[node]
            to = f"{self.row(buffer)} + {self.needs.units(offset)} + j"
            done.append(f"x[{plane}].store({to}, n);")
        return self._multiply(group, done)

    def _fused(self, index: int, stage: Stage) -> list[str]:
        (group,) = stage.groups
        code = _Code(self, index, {node: f"x[{k}]" for k, node in enumerate(group.nodes)})
        for store in stage.stores:
            code.store(store)
        self.members += [
            "template <class M>",
            "__attribute__((noinline)) void "
            f"unit{index}(const Live<S>& live, int64_t i, int64_t j, M m, const V* x) const {{",
            *_in(1, code.lines + code.stores),
            "}",
        ]
        done = [
            f"if (n >= L) unit{index}(live, i, j, Whole{{}}, x);",
            f"else unit{index}(live, i, j, Lanes{{n}}, x);",
        ]
        return self._multiply(group, done)

    def _rows(self, index: int, stage: Stage) -> list[str]:
        """The stage's reductions, and what is pointwise, row by row."""
        rows = _Code(self, index, {})
        for wave in stage.waves:
            self._wave(rows, wave)
        for store in stage.stores:
            if store.node.scalar:
                rows.store_scalar(store)
        vectors = [store for store in stage.stores if not store.node.scalar]
        for width in sorted({store.node.width for store in vectors}):
            code = _Code(self, index, {}, rows)
            for store in vectors:
                if store.node.width == width:
                    code.store(store)
            rows.lines += [
                "{",
                "  const auto unit = [&](int64_t j, auto m) {",
                *_in(2, code.lines + code.stores),
                "  };",
                f"  units(place, {self.needs.units(width)}, [&](int64_t j, int64_t n) {{",
                "    if (n >= L) unit(j, Whole{});",
                "    else unit(j, Lanes{n});",
                "  });",
                "}",
            ]
        return [
            f"void rows{index}(const Place& place, const Live<S>& live) const {{",
            "  for (int64_t i = 0; i < live.n; ++i) {",
            *_in(2, rows.lines),
            "  }",
            "}",
        ]

    def _wave(self, rows: _Code, wave: list[Node]) -> None:
        for width in sorted({node.args[0].width for node in wave}):
            nodes = [node for node in wave if node.args[0].width == width]
            code = _Code(self, rows.stage, {}, rows)
            for node in nodes:
                total, value = f"t{node.index}", code.vector(node.args[0])
                if node.op == "rsum":
                    rows.lines.append(f"V {total}(S(0));")
                    code.lines.append(f"{total} = {total} + held({value}, m, S(0));")
                else:
                    low = "-std::numeric_limits<S>::infinity()"
                    rows.lines.append(f"V {total}({low});")
                    code.lines.append(f"{total} = maximum({total}, held({value}, m, {low}));")
            rows.lines += [
                f"every({self.needs.units(width)}, [&](int64_t j, auto m) {{",
                *_in(1, code.lines),
                "});",
            ]
        for node in wave:
            how = "sum" if node.op == "rsum" else "largest"
            rows.lines.append(f"const S s{node.index} = {how}(t{node.index});")
            rows.names[node] = f"s{node.index}"
            if node in self.program.scalars:
                to = f"live.scalars[i * kScalars + {self.program.scalars[node]}]"
                rows.lines.append(f"{to} = s{node.index};")


class _Code:
    """Lines that define values, each once. ``outer``: whose scalars can be used."""

    def __init__(
        self, own: _Class, stage: int, names: dict[Node, str], outer: _Code | None = None
    ) -> None:
        self.own, self.stage, self.outer = own, stage, outer
        self.names, self.lines = dict(names), list[str]()
        self.stores = list[str]()  # after all that is read: they may take its place

    def store(self, store: Store) -> None:
        node, buffer, offset, add, always = store
        value = self.vector(node)
        to = f"{self.own.row(buffer)} + {self.own.needs.units(offset)} + j"
        if add:
            value = f"m.load({to}) + {value}"
        if buffer.startswith("dold"):
            value = f"handed({value}, live.reset[i])"
        condition = "" if always else "if (training()) "
        self.stores.append(f"{condition}m.store(V({value}), {to});")

    def store_scalar(self, store: Store) -> None:
        node, buffer, offset, add, always = store
        value = self.scalar(node)
        conditions = ["place.unit == 0", *([] if always else ["training()"])]
        sign = "+=" if add else "="
        to = f"{self.own.row(buffer)}[{offset}]"
        self.lines.append(f"if ({' && '.join(conditions)}) {to} {sign} {value};")

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
            return self._load(node.attrs[0], node.attrs[1])
        if node.op == "param":
            weight, offset, _ = node.attrs
            return f"m.load(weight({needs.weight(weight)}) + {needs.units(offset)} + j)"
        earlier = program.stage_of[node] < self.stage
        if (earlier and node in program.at) or node.op == "product":
            return self._load(*program.at[node])
        return self._operator(node, self.vector)

    def _load(self, name: str, offset: int) -> str:
        at = f" + {self.own.needs.units(offset)} + j"
        text = f"m.load({self.own.row(name)}{at})"
        if name.startswith("dstate"):
            more = self.own.row(name.replace("dstate", "dy"))
            return f"{more} ? {text} + m.load({more}{at}) : {text}"
        return text

    def scalar(self, node: Node) -> str:
        if node.op == "const":
            return self.own.needs.constant(node.attrs[0])
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
            return f"{self.own.row(node.attrs[0])}[{node.attrs[1]}]"
        if node.op == "param":
            weight, offset, _ = node.attrs
            return f"weight({self.own.needs.weight(weight)})[{offset}]"
        if node.op in REDUCTIONS:
            return f"live.scalars[i * kScalars + {self.own.program.scalars[node]}]"
        return self._operator(node, self.scalar)

    def _operator(self, node: Node, argument: Callable[[Node], str]) -> str:
        return OPERATORS[node.op].text.format(*(argument(arg) for arg in node.args))


def _in(depth: int, lines: list[str]) -> list[str]:
    return ["  " * depth + line for line in lines]
