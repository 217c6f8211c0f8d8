"""CUDA C++ of a program, over csrc/cuda/steps/loop.h: bodies of kernels, which one thread runs for
a unit or all threads of a block for a sequence, and a class whose step launches them."""

from __future__ import annotations

from ..cells.step_error import StepError
from .code import Class, Code, Emitter, Needs, indented
from .graph import Node
from .layout import Layout
from .source import Source
from .stages import Group, Program, Stage, Store, by_width, reduced_width

PARAMETERS = 4096  # bytes that a launch takes


def cuda_source(layout: Layout) -> Source:
    """The file of a cell in CUDA C++, in float32, and what is to be passed to it.

    Raises:
        StepError: a launch would have to take more than it can.
    """
    needs = Needs(layout.traced.hidden)
    emitters = [
        _Class("Forward", layout.forward, needs, backward=False),
        _Class("Backward", layout.backward, needs, backward=True),
    ]
    made = [emitter.made() for emitter in emitters]
    for emitter in emitters:
        emitter.check()
    lines = ['#include "cuda/steps/loop.h"', "", "namespace rnnfast::cuda::steps {", ""]
    counts = f"{len(needs.weights)}, {len(needs.constants)}"
    for name, part in zip(("Forward", "Backward"), made, strict=True):
        lines += [f"struct {name};"]
        lines += [f"using {name}Pass = Pass<{name}, {len(part.buffers)}, {counts}>;", part.text]
    lines += ["}  // namespace rnnfast::cuda::steps", "", '#include "cuda/steps/entry.inc"', ""]
    return Source("\n".join(lines), layout, needs, made[0].buffers, made[1].buffers)


class _Class(Emitter):
    def __init__(self, name: str, program: Program, needs: Needs, backward: bool) -> None:
        super().__init__(name, program, needs)
        self.backward = backward
        self.bodies: list[str] = []
        self.members: list[str] = []
        self.shapes: list[tuple[int, int]] = []  # planes and terms of each product

    def check(self) -> None:
        """That each launch takes its arguments, once all is made. Raises StepError."""
        for planes, terms in self.shapes:
            size = product_bytes(self.buffers, self.needs, planes, terms)
            if size > PARAMETERS:
                raise StepError(
                    f"no CUDA kernel can be made of the step: a product of {terms} operands that "
                    f"do not lie side by side takes {size} bytes of a launch's {PARAMETERS}"
                )

    def made(self) -> Class:
        steps: list[str] = []
        for index, stage in enumerate(self.program.stages):
            steps += [f"// stage {index}", *self._stage(index, stage)]
        lines = [
            *self.bodies,
            f"struct {self.name} : {self.name}Pass {{",
            f"  using {self.name}Pass::{self.name}Pass;",
            f"  static constexpr bool kBackward = {'true' if self.backward else 'false'};",
            f"  static constexpr int kScalars = {len(self.program.scalars)};",
            "",
            "  void step() const {",
            *indented(2, steps),
            "  }",
            "",
            *indented(1, self.members),
            "};",
        ]
        return Class("\n".join(lines) + "\n", self.buffers)

    # --- stages -----------------------------------------------------------------------------------

    def _stage(self, index: int, stage: Stage) -> list[str]:
        if stage.fused:
            self._unit(index, stage)
            return [f"fused<{self.name}{index}>({self._product(stage.groups[0])});"]
        lines = [f"apart({self._product(group)});" for group in stage.groups]
        if stage.stores or stage.waves:
            widths = [store.node.width for store in stage.stores]
            widths += [node.args[0].width for wave in stage.waves for node in wave]
            reduces = "true" if stage.waves else "false"
            self._row(index, stage)
            lines.append(f"rows<{self.name}{index}>({self.needs.units(max(widths))}, {reduces});")
        return lines

    def _product(self, group: Group) -> str:
        """The member that says what a launch multiplies."""
        units, blocks = self.needs.units, group.blocks
        terms, segments = group.terms(self.program.operand), []
        for name, offset, width, _ in terms:
            old = "true" if name.startswith("state") else "false"
            K = units(width // blocks)
            segments.append(f"{{{self.number(name)}, {units(offset)}, {K}, {old}}}")
        places = []
        for node in group.nodes:
            name, offset = self.program.at.get(node, ("", 0))
            places.append(f"{{{self.number(name)}, {units(offset)}}}" if name else "{}")
        self.shapes.append((len(group.nodes), len(terms)))
        shape = f"Product<{len(group.nodes)}, {len(terms)}>"
        member = f"p{len(self.members)}"
        self.members.append(
            f"const {shape} {member} = product({self.views(group)}, {shape}{{{blocks}, "
            f"{units(group.width // blocks)}, {{{', '.join(segments)}}}, {{}}, "
            f"{{{', '.join(places)}}}}});"
        )
        return member

    def _unit(self, index: int, stage: Stage) -> None:
        """What is done with a product's sums."""
        (group,) = stage.groups
        code = _Code(self, index, {node: f"x[{k}]" for k, node in enumerate(group.nodes)})
        own = f"Body<{self.name}Pass::OwnStep>"
        self._body(
            index, own, "void unit(int64_t j, const float* x) const", code.body(stage.stores)
        )

    def _row(self, index: int, stage: Stage) -> None:
        """The stage's reductions, and what is pointwise."""
        rows = _Code(self, index, {})
        for wave in stage.waves:
            self._wave(rows, wave)
        for store in stage.scalars:
            rows.store_scalar(store)
        for width, stores in stage.vectors():
            body = _Code(self, index, {}, rows).body(stores)
            rows.lines += [
                f"units({self.needs.units(width)}, [&](int64_t j) {{",
                *indented(1, body),
                "});",
            ]
        self._body(index, f"RowBody<{self.name}Pass::OwnStep>", "void run() const", rows.lines)

    def _wave(self, rows: _Code, wave: list[Node]) -> None:
        wave = sorted(wave, key=lambda node: node.op != "rsum")  # sums first
        sums = sum(node.op == "rsum" for node in wave)
        array = f"t{wave[0].index}"
        begin = ["S(0)" if node.op == "rsum" else "kLeast" for node in wave]
        rows.lines.append(f"S {array}[] = {{{', '.join(begin)}}};")
        for width, nodes in by_width(enumerate(wave), lambda one: reduced_width(one[1])):
            code = _Code(self, rows.stage, {}, rows)
            for at, node in nodes:
                own, value = f"{array}[{at}]", code.vector(node.args[0])
                both = f"{own} + {value}" if at < sums else f"maximum({own}, {value})"
                code.lines.append(f"{own} = {both};")
            rows.lines += [
                f"every({self.needs.units(width)}, [&](int64_t j) {{",
                *indented(1, code.lines),
                "});",
            ]
        rows.lines.append(f"reduce<{sums}>({array});")
        for at, node in enumerate(wave):
            rows.lines.append(f"const S s{node.index} = {array}[{at}];")
            rows.names[node] = f"s{node.index}"
            if node in self.program.scalars:
                to = rows.place_of(self.program.scalars[node])
                rows.lines.append(f"if (writes()) store({to}, s{node.index});")

    def _body(self, index: int, base: str, function: str, lines: list[str]) -> None:
        self.bodies += [
            f"struct {self.name}{index} : {base} {{",
            f"  using {base.partition('<')[0]}::{base.partition('<')[0]};",
            f"  RNNFAST_DEVICE {function} {{",
            *indented(2, lines),
            "  }",
            "};",
            "",
        ]


def product_bytes(buffers: list[str], needs: Needs, planes: int, terms: int) -> int:
    """Of csrc/cuda/steps: the step, of its buffers, weights and constants, and the product."""
    step = 80 + 24 * (len(buffers) + 1) + 8 * (len(needs.weights) + 1)
    step += -(-4 * (len(needs.constants) + 1) // 8) * 8
    product = 16 + 32 * terms * (1 + planes) + 16 * planes
    return step + product + 8


class _Code(Code):
    def row(self, name: str) -> str:
        kind = name.rstrip("0123456789")
        how = {"state": "old", "dstate": "incoming", "dy": "given"}.get(kind, "row")
        return f"{how}({self.own.number(name)})"

    def load(self, name: str, offset: int) -> str:
        unit = f"{self.own.needs.units(offset)} + j"
        if name.startswith("dstate"):
            more = self.row(name.replace("dstate", "dy"))
            return f"load({self.row(name)} + {unit}) + read({more}, {unit})"
        if name.startswith("state"):
            return f"read({self.row(name)}, {unit})"
        return f"load({self.row(name)} + {unit})"

    def loaded(self, address: str) -> str:
        return f"load({address})"

    def stored(self, address: str, value: str) -> str:
        return f"store({address}, {value})"

    def handed(self, value: str, buffer: str) -> str:
        return f"handed({value})"

    def load_scalar(self, name: str, index: int) -> str:
        return f"load({self.row(name)} + {index})"

    def place_of(self, index: int) -> str:
        """Where a reduction is kept for later stages."""
        return f"kept({len(self.own.program.scalars)}, {index})"

    def kept(self, index: int) -> str:
        return f"load({self.place_of(index)})"

    def store_scalar(self, store: Store) -> None:
        node, buffer, offset, add, always = store
        value, to = self.scalar(node), f"{self.row(buffer)} + {offset}"
        conditions = ["writes()", *([] if always else ["training()"])]
        if add:
            value = f"load({to}) + {value}"
        self.lines.append(f"if ({' && '.join(conditions)}) store({to}, {value});")
