"""The step loop of a kernel, found in its machine code, and how many instructions a step runs.

In the output of ``nvdisasm -c`` a loop is what lies between a label and a branch back to it. The
loop of the steps is the innermost one that multiplies and has a barrier: within a step, no smaller
loop has both. (A team's kernel goes over its batch tiles in a step; there it is that loop, once for
each phase, that is found, and what it runs is the work of one tile.) Loops inside it that multiply
read the slabs that are not in registers; how often they turn follows from how many products the
step needs. Other loops inside it poll, and are counted as turning once.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rnnfast.inspect.sass import class_of

TENSOR_CORE, FFMA = "HMMA", "FFMA"
BARRIERS = frozenset({"BAR", "SYNCS", "UCGABAR_WAIT", "UCGABAR_ARV"})
OPERAND_LOADS = frozenset({"LDSM"})  # one a slab: skipped with its products

_KERNEL = re.compile(r"^\s*\.section\s+\.text\.(\S+?),", re.MULTILINE)
_LINE = re.compile(
    r"^(?P<label>\.L_x_\d+):|"
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)(?P<rest>.*)$",
    re.MULTILINE,
)
_TARGET = re.compile(r"\((\.L_x_\d+)\)")


class LoopError(ValueError):
    """The machine code has no step loop, or one that can't be what was asked for."""


class Instruction(NamedTuple):
    opcode: str  # up to its first dot
    target: int  # of a branch: the index of the instruction it goes to; else -1


class Span(NamedTuple):
    """Instructions first … last, of which the last branches back to the first."""

    first: int
    last: int

    def inside(self, other: Span) -> bool:
        return other.first <= self.first and self.last <= other.last and self != other


@dataclass(frozen=True)
class StepLoop:
    """Instructions of a warp in a step.

    Attributes:
        product: the opcode that multiplies. straight: instructions outside of inner loops that
            multiply, by opcode. inner: those of each such loop, one turn.
        copies: how many phases' loops are added up here.
    """

    product: str
    straight: Counter[str]
    inner: tuple[Counter[str], ...]
    copies: int

    @property
    def products(self) -> int:
        """That stand in the code, each counted once."""
        return self.straight[self.product] + sum(turn[self.product] for turn in self.inner)

    def executed(self, needed: float) -> Counter[str]:
        """Instructions by class that a warp runs where a step needs so many products of it.

        An upper bound: as if the warp had all the groups of its shape. Raises LoopError where the
        loop can't do so many products.
        """
        held = self.straight[self.product]
        run: dict[str, float] = defaultdict(float)
        share = min(1.0, needed / held) if held and self.product == TENSOR_CORE else 1.0
        for opcode, n in self.straight.items():
            scaled = opcode == self.product or opcode in OPERAND_LOADS
            run[class_of(opcode)] += n * share if scaled else n
        missing = needed - held
        if missing > 0:
            turn = sum(loop[self.product] for loop in self.inner)
            if turn == 0:
                raise LoopError(f"a step needs {needed:g} products, its loop has {held}")
            for loop in self.inner:
                for opcode, n in loop.items():
                    run[class_of(opcode)] += n * missing / turn
        return Counter({kind: round(n) for kind, n in run.items() if round(n)})


def kernels(sass: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel, by its name, from the output of ``nvdisasm -c``."""
    starts = [(m.group(1), m.end()) for m in _KERNEL.finditer(sass)]
    ends = [start for _, start in starts[1:]] + [len(sass)]
    return {
        name: _instructions(sass[start:end])
        for (name, start), end in zip(starts, ends, strict=True)
    }


def _instructions(text: str) -> list[Instruction]:
    labels: dict[str, int] = {}
    found: list[tuple[str, str]] = []
    for line in _LINE.finditer(text):
        if line["label"]:
            labels[line["label"]] = len(found)
            continue
        opcode = line["opcode"].partition(".")[0]
        target = _TARGET.search(line["rest"]) if opcode == "BRA" else None
        found.append((opcode, target.group(1) if target else ""))
    return [Instruction(opcode, labels.get(target, -1)) for opcode, target in found]


def step_loop(code: Sequence[Instruction]) -> StepLoop:
    """Raises LoopError where no loop multiplies and has a barrier."""
    opcodes = {instruction.opcode for instruction in code}
    product = TENSOR_CORE if TENSOR_CORE in opcodes else FFMA
    spans = sorted(set(_spans(code)))
    found = [span for span in spans if _is_step(code, span, product)]
    innermost = [span for span in found if not any(other.inside(span) for other in found)]
    if not innermost:
        raise LoopError(f"no loop has both {product} and a barrier")
    largest = max(innermost, key=lambda span: _count(code, span)[product])
    phases = [span for span in innermost if _same_step(largest, span, found)]
    straight: Counter[str] = Counter()
    inner: list[Counter[str]] = []
    for phase in phases:
        own, turns = _split(code, phase, spans, product)
        straight += own
        inner += turns
    return StepLoop(product, straight, tuple(inner), len(phases))


def _spans(code: Sequence[Instruction]) -> Iterator[Span]:
    for place, instruction in enumerate(code):
        if 0 <= instruction.target < place:  # a branch to itself ends a kernel
            yield Span(instruction.target, place)


def _count(code: Sequence[Instruction], span: Span) -> Counter[str]:
    return Counter(instruction.opcode for instruction in code[span.first : span.last + 1])


def _is_step(code: Sequence[Instruction], span: Span, product: str) -> bool:
    opcodes = _count(code, span)
    return opcodes[product] > 0 and any(opcodes[barrier] for barrier in BARRIERS)


def _same_step(one: Span, other: Span, steps: Sequence[Span]) -> bool:
    """Whether both are in one larger loop: phases of a step, not versions of a whole loop."""
    return one == other or any(one.inside(step) and other.inside(step) for step in steps)


def _split(
    code: Sequence[Instruction], phase: Span, spans: Sequence[Span], product: str
) -> tuple[Counter[str], list[Counter[str]]]:
    """What stands in a loop but for its inner loops that multiply, and each of those."""
    multiply = [s for s in spans if s.inside(phase) and _count(code, s)[product]]
    outermost = [s for s in multiply if not any(s.inside(other) for other in multiply)]
    turns = [_count(code, span) for span in outermost]
    straight = _count(code, phase)
    for turn in turns:
        straight -= turn
    for arm in _questions(code, phase, product):
        straight -= _count(code, arm)
    return straight, turns


def _questions(code: Sequence[Instruction], phase: Span, product: str) -> Iterator[Span]:
    """Where the same product stands twice, one or the other of which runs: the longer one, with
    questions, which a warp that has all its tiles and slabs does not run."""
    for place in range(phase.first, phase.last):
        there = code[place].target
        if not place + 1 < there <= phase.last:
            continue
        after = code[there - 1].target  # the end of the first, which goes on behind the second
        if not there < after <= phase.last:
            continue
        arms = Span(place + 1, there - 1), Span(there, after - 1)
        products = [_count(code, arm)[product] for arm in arms]
        if products[0] == products[1] > 1:
            yield max(arms, key=lambda arm: arm.last - arm.first)
