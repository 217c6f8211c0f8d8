"""Printing what was read of machine code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One kernel on one architecture.

    Attributes:
        num_warps: a program's (a thread block's). registers: of a thread (AMD: vector registers of
            a lane). shared: bytes that a program asks for. stack: bytes of a thread in memory.
        spills: NVIDIA: instructions that touch it; AMD: registers.
        products: instructions of tensor (AMD: matrix) cores.
        instructions: how many stand in the code, by class.
        seconds: what compiling took; next to nothing where a cache had it.
    """

    kernel: str
    arch: str
    num_warps: int
    registers: int
    shared: int
    stack: int
    spills: int
    products: int
    instructions: Mapping[str, int]
    seconds: float


def columns(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Aligned text: the first column to the left, the others to the right."""
    cells = [list(header), *([str(item) for item in line] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    shown = []
    for line in cells:
        rest = [item.rjust(width) for item, width in zip(line[1:], widths[1:], strict=True)]
        shown.append("  ".join([line[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(shown)


def render(rows: Sequence[Row]) -> str:
    """One line a kernel, and below them the instructions by class."""
    header = ("kernel", "warps", "registers", "shared", "stack", "spills", "products", "seconds")
    figures = columns(
        header,
        (
            (
                r.kernel,
                r.num_warps,
                r.registers,
                r.shared,
                r.stack,
                r.spills,
                r.products,
                f"{r.seconds:.1f}",
            )
            for r in rows
        ),
    )
    names = list(dict.fromkeys(name for row in rows for name in row.instructions))
    counts = columns(
        ("instructions", *(r.kernel for r in rows)),
        ([name, *(r.instructions.get(name, 0) for r in rows)] for name in names),
    )
    return f"{figures}\n\n{counts}"
