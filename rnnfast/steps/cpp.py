"""C++ of a program: one class for forward, one for backward, over csrc/cpu/steps/loop.h."""

from __future__ import annotations

from .code import Class, Code, Emitter, Needs, indented
from .graph import Node
from .stages import Group, Program, Stage, Store, by_width, reduced_width


def emit(name: str, program: Program, needs: Needs, backward: bool, tangents: int = 0) -> Class:
    """``tangents``: as Traced has it."""
    return _Class(name, program, needs, backward, tangents).made()


class _Class(Emitter):
    def __init__(
        self, name: str, program: Program, needs: Needs, backward: bool, tangents: int
    ) -> None:
        super().__init__(name, program, needs)
        self.backward, self.tangents = backward, tangents
        self.products: list[Group] = []
        self.members: list[str] = []

    def made(self) -> Class:
        steps: list[str] = []
        for index, stage in enumerate(self.program.stages):
            steps += self._stage(index, stage)
        pack = [
            f"this->template pack_product<{len(group.nodes)}>(place, {k});"
            for k, group in enumerate(self.products)
        ]
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
            "  using Base::across, Base::bound, Base::constant, Base::every, Base::handed;",
            "  using Base::H, Base::held, Base::L, Base::largest, Base::sum, Base::training;",
            "  using Base::units, Base::weight;",
            "",
            " public:",
            "  using Base::Base;",
            f"  static constexpr int kBuffers = {len(self.buffers)};",
            f"  static constexpr int kScalars = {len(self.program.scalars)};",
            f"  static constexpr bool kBackward = {'true' if self.backward else 'false'};",
            "",
            "  static constexpr Product product(int k, int64_t H) {",
            *indented(2, [*shapes, "return {1, H, H, 1};"]),
            "  }",
            "",
            *indented(1, self._terms()),
            "",
            "  void pack(const Place& place) {",
            *indented(2, pack),
            "  }",
            "",
            "  void step(const Place& place, const Live<S>& live) {",
            *indented(2, steps),
            "  }",
            "",
            " private:",
            *indented(1, self.members),
            "};",
        ]
        return Class("\n".join(lines) + "\n", self.buffers)

    def handed(self, buffer: str) -> str:
        """What a state's gradient goes through on its way to the step before. Of a state that has a
        tangent it is limited already, as a derivative is (layout.py)."""
        derivative = 0 < self.tangents <= int(buffer.removeprefix("dold"))
        return "across" if derivative else "handed"

    # --- stages -----------------------------------------------------------------------------------

    def _stage(self, index: int, stage: Stage) -> list[str]:
        if stage.fused:
            wait = [] if self._goes_on(index, stage) else ["if (!place.wait()) return;"]
            return [f"// stage {index}", *self._fused(index, stage), *wait]
        lines = [f"// stage {index}"]
        for group in stage.groups:
            lines += self._apart(group)
        if stage.groups:
            lines.append("if (!place.wait()) return;")
        if stage.stores or stage.waves:
            lines += [f"rows{index}(place, live);", "if (!place.wait()) return;"]
            self.members += self._rows(index, stage)
        return lines

    def _goes_on(self, index: int, stage: Stage) -> bool:
        """Whether a thread may begin the next step without waiting for the others: it reads there
        only what it has written itself, and writes nothing that others still read."""
        first, last = self.program.stages[0], len(self.program.stages) - 1
        if not self.backward or index != last or index == 0 or first.groups or first.waves:
            return False
        widths = {store.node.width for store in first.stores}
        return all(
            len(group.nodes) == group.blocks == 1
            and widths == {group.width}
            and all(self.program.operand(arg)[0] != "tmp" for arg in group.operands)
            for group in stage.groups
        )

    def _terms(self) -> list[str]:
        """What the products sum up."""
        each = [group.terms(self.program.operand) for group in self.products]
        kind = f"Terms<{max(map(len, each), default=1)}>"
        found = [f"static constexpr {kind} terms(int k, int64_t H) {{"]
        for k, (group, terms) in enumerate(zip(self.products, each, strict=True)):
            widths = ", ".join(self.needs.units(term.width) for term in terms)
            value = f"{self.views(group)}, {len(terms)}, {{{widths}}}"
            found.append(f"  if (k == {k}) return {{{value}}};")
        return [*found, "  return {};", "}"]

    def _product(self, group: Group) -> int:
        """Its number. Those of the same matrices are packed once."""
        for k, known in enumerate(self.products):
            if self._packed(known) == self._packed(group):
                return k
        self.products.append(group)
        return len(self.products) - 1

    def _packed(self, group: Group) -> tuple[object, ...]:
        matrices = [term.matrices for term in group.terms(self.program.operand)]
        return (group.width, group.blocks, len(group.nodes), matrices)

    def _segments(self, group: Group) -> list[str]:
        runs: list[tuple[str, int, int]] = []  # (row, first, last) of operands side by side
        for name, first, width, _ in group.terms(self.program.operand):
            last = first + width
            if runs and group.blocks == 1 and (name, first) == (runs[-1][0], runs[-1][2]):
                first = runs.pop()[1]
            runs.append((name, first, last))
        return [
            f"{{live.p[{self.number(name)}], {self.needs.units(last - first)}, "
            f"{self.needs.units(first)}}}"
            for name, first, last in runs
        ]

    def _multiply(self, group: Group, done: list[str]) -> list[str]:
        k = self._product(group)
        return [
            "{",
            f"  const Segment<S> segments[] = {{{', '.join(self._segments(group))}}};",
            f"  this->template multiply<{len(group.nodes)}>(",
            f"      place, live, {k}, segments,",
            "      [&](int64_t i, int64_t j, int64_t n, const V* x) {",
            *indented(3, done),
            "      });",
            "}",
        ]

    def _multiply_together(self, groups: list[Group], done: list[str]) -> list[str]:
        """Of products that are alike; those with fewer segments get some of no values."""
        numbers = [self._product(group) for group in groups]
        segments = [self._segments(group) for group in groups]
        most = max(map(len, segments))
        nothing = f"{{live.p[{self.number(self.program.operand(groups[0].operands[0])[0])}], 0, 0}}"
        rows = [own + [nothing] * (most - len(own)) for own in segments]
        sets, planes = len(groups), len(groups[0].nodes)
        return [
            "{",
            f"  constexpr int products[] = {{{', '.join(map(str, numbers))}}};",
            f"  const Segment<S> segments[{sets}][{most}] = {{",
            *(f"      {{{', '.join(row)}}}," for row in rows),
            "  };",
            f"  this->template multiply_together<{planes}>(",
            "      place, live, products, segments,",
            "      [&](int64_t i, int64_t j, int64_t n, const V* const* x) {",
            *indented(3, done),
            "      });",
            "}",
        ]

    def _apart(self, group: Group) -> list[str]:
        """A product whose sums go to memory."""
        done, code = [], _Code(self, 0, {})
        for plane, node in enumerate(group.nodes):
            buffer, offset = self.program.at[node]
            to = code.address(code.row(buffer), offset)
            done.append(f"x[{plane}].store({to}, n);")
        return self._multiply(group, done)

    def _fused(self, index: int, stage: Stage) -> list[str]:
        several = len(stage.groups) > 1
        names = {
            node: f"x[{s}][{k}]" if several else f"x[{k}]"
            for s, group in enumerate(stage.groups)
            for k, node in enumerate(group.nodes)
        }
        code = _Code(self, index, names)
        sums = "const V* const* x" if several else "const V* x"
        self.members += [
            "template <class M>",
            "__attribute__((noinline)) void "
            f"unit{index}(const Live<S>& live, int64_t i, int64_t j, M m, {sums}) const {{",
            *indented(1, code.body(stage.stores)),
            "}",
        ]
        done = [
            f"if (n >= L) unit{index}(live, i, j, Whole{{}}, x);",
            f"else unit{index}(live, i, j, Lanes{{n}}, x);",
        ]
        if several:
            return self._multiply_together(stage.groups, done)
        return self._multiply(stage.groups[0], done)

    def _rows(self, index: int, stage: Stage) -> list[str]:
        """The stage's reductions, and what is pointwise, row by row."""
        rows = _Code(self, index, {})
        for wave in stage.waves:
            self._wave(rows, wave)
        for store in stage.scalars:
            rows.store_scalar(store)
        for width, stores in stage.vectors():
            body = _Code(self, index, {}, rows).body(stores)
            rows.lines += [
                "{",
                "  const auto unit = [&](int64_t j, auto m) {",
                *indented(2, body),
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
            *indented(2, rows.lines),
            "  }",
            "}",
        ]

    def _wave(self, rows: _Code, wave: list[Node]) -> None:
        for width, nodes in by_width(wave, reduced_width):
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
                *indented(1, code.lines),
                "});",
            ]
        for node in wave:
            how = "sum" if node.op == "rsum" else "largest"
            rows.lines.append(f"const S s{node.index} = {how}(t{node.index});")
            rows.names[node] = f"s{node.index}"
            if node in self.program.scalars:
                to = f"live.scalars[i * kScalars + {self.program.scalars[node]}]"
                rows.lines.append(f"{to} = s{node.index};")


class _Code(Code):
    own: _Class

    def row(self, name: str) -> str:
        return f"live.p[{self.own.number(name)}][i]"

    def load(self, name: str, offset: int) -> str:
        text = self.loaded(self.address(self.row(name), offset))
        if name.startswith("dstate"):
            more = self.row(name.replace("dstate", "dy"))
            return f"{more} ? {text} + {self.loaded(self.address(more, offset))} : {text}"
        return text

    def loaded(self, address: str) -> str:
        return f"m.load({address})"

    def stored(self, address: str, value: str) -> str:
        return f"m.store(V({value}), {address})"

    def handed(self, value: str, buffer: str) -> str:
        return f"{self.own.handed(buffer)}({value}, live.reset[i])"

    def load_scalar(self, name: str, index: int) -> str:
        return f"{self.row(name)}[{index}]"

    def kept(self, index: int) -> str:
        return f"live.scalars[i * kScalars + {index}]"

    def store_scalar(self, store: Store) -> None:
        node, buffer, offset, add, always = store
        value = self.scalar(node)
        conditions = ["place.unit == 0", *([] if always else ["training()"])]
        sign = "+=" if add else "="
        to = f"{self.row(buffer)}[{offset}]"
        self.lines.append(f"if ({' && '.join(conditions)}) {to} {sign} {value};")
