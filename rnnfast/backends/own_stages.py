"""What a compiled cell's step was cut into: ``explain(…).choices[0].stages``."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ..cells import CELLS, CellSpec
from ..problem import Problem, wide
from ..steps.graph import LEAVES, REDUCTIONS, Matrix, Node, ordered
from ..steps.run import Kernel, kernel
from ..steps.stages import Program, Stage

_SAME = ("spread", "product", *LEAVES, *REDUCTIONS)  # are no pointwise operations


class StageView(NamedTuple):
    """One stage of a compiled step. Threads that share the hidden units meet between two.

    Attributes:
        way: "forward" or "backward".
        products: "w_hh [96, 32] · h": the matrix, and what it multiplies; ᵀ: transposed.
        reductions: "sum" or "max" of a row, one each.
        pointwise: (operator, how many) of what is done for each hidden unit by itself.
        stores: what it leaves in memory: the new states ("h'"), what is saved for backward, "dgx"
            and so on.
    """

    way: str
    products: tuple[str, ...]
    reductions: tuple[str, ...]
    pointwise: tuple[tuple[str, int], ...]
    stores: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            *self.products,
            *(f"{n} {what} of a row" for what, n in Counter(self.reductions).items()),
            ", ".join(f"{n} {what}" for what, n in self.pointwise),
            "stores " + ", ".join(self.stores) if self.stores else "",
        ]
        return f"{self.way}: " + "; ".join(part for part in parts if part)


def stages(problem: Problem) -> tuple[StageView, ...]:
    """Of the kernel that computes ``problem``, in the order in which they run; () where none is."""
    found = kernel(problem.cell, problem.H, problem.bias, wide(problem.dtype))
    if not isinstance(found, Kernel):
        return ()
    spec, layout = CELLS[problem.cell], found.layout
    ways = (("forward", layout.forward), ("backward", layout.backward))
    return tuple(view for way, program in ways for view in _views(way, spec, program, problem.H))


def _views(way: str, spec: CellSpec, program: Program, H: int) -> list[StageView]:
    stored = [store.node for stage in program.stages for store in stage.stores]
    units = [Counter[str]() for _ in program.stages]
    for node in ordered(stored):
        if node.op not in _SAME:
            units[program.stage_of[node]][node.op] += node.width
    return [
        StageView(
            way,
            tuple(_products(stage, spec, program)),
            tuple({"rsum": "sum", "rmax": "max"}[n.op] for wave in stage.waves for n in wave),
            tuple((op, -(-width // H)) for op, width in count.most_common() if width),
            tuple(dict.fromkeys(_name(store.buffer, spec) for store in stage.stores)),
        )
        for stage, count in zip(program.stages, units, strict=True)
    ]


def _products(stage: Stage, spec: CellSpec, program: Program) -> list[str]:
    """Nodes that multiply the same by parts of one matrix make one line; so do a sum's terms."""
    rows: Counter[tuple[str, int, str]] = Counter()
    for group in stage.groups:
        operands = [_operand(node, spec, program) for node in group.operands]
        for matrices in group.matrices:
            columns: Counter[tuple[str, str]] = Counter()
            for matrix, operand in zip(matrices, operands, strict=True):
                columns[_matrix(matrix), operand] += matrix.cols
            for (name, operand), cols in columns.items():
                rows[name, cols, operand] += group.width
    return [f"{name} [{n}, {cols}] · {operand}" for (name, cols, operand), n in rows.items()]


def _matrix(matrix: Matrix) -> str:
    return matrix.weight + ("ᵀ" if matrix.row_stride < matrix.col_stride else "")


def _operand(node: Node, spec: CellSpec, program: Program) -> str:
    """By the row of memory that it is read from."""
    return _name(program.operand(node)[0], spec)


def _name(buffer: str, spec: CellSpec) -> str:
    """A row of memory (steps/layout.py), by the name of the state that it is of."""
    stem = buffer.rstrip("0123456789")
    named = {"state": "{}", "new": "{}'", "dstate": "d{}'", "dold": "d{}"}.get(stem)
    if named is not None:
        return named.format(spec.states[int(buffer[len(stem) :])])
    return {"acc1": "acc"}.get(buffer, buffer)
