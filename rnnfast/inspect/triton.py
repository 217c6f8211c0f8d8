"""Triton's kernels as machine code: compiled ahead of time, read, and their limits measured."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..cells import CELLS
from ..problem import Options, Problem
from ..steps.gpu import layout_of
from ..steps.triton_text import text_of
from ..triton.cells import why_not
from ..triton.plan import Device, Tiling, candidates, resident_tiling
from . import amd, sass
from .table import Row

# bytes of shared memory that one program may ask for
SHARED_MEMORY = {"80": 163 << 10, "90": 227 << 10, "100": 227 << 10, "gfx942": 64 << 10}
LARGEST_TILE = 512  # of hidden units, that measuring limits begins with
WARPS = {16: (4,), 32: (4, 8), 64: (8, 16, 4), 128: (8, 16), 256: (16, 8), 512: (16,)}
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}


class InspectError(RuntimeError):
    """The kernels can't be compiled here, or not as asked; the text says why."""


def is_clean(row: Row) -> bool:
    """Nothing of a thread lies in memory, and a program's shared memory fits the device."""
    return row.spills == 0 and row.stack == 0 and row.shared <= SHARED_MEMORY[row.arch]


def tilings_for(
    cell: str, math: str, arch: str, H: int, P: int, B: int, strategy: str
) -> tuple[Tiling, Tiling]:
    """The tilings of forward and backward that a GPU of this architecture gets, unmeasured.

    ``strategy``: auto, resident or stepwise. Raises InspectError where no resident kernel fits.
    """
    shape = (B, B, 1, H, P if CELLS[cell].projected else H)
    options = Options(training=True)
    problem = Problem(cell, "dense", "cuda", DTYPES[math], *shape, True, False, False, options)
    device = Device("", arch, SHARED_MEMORY.get(arch, 99 << 10))
    found = []
    for direction in ("forward", "backward"):
        tilings = candidates(direction, problem, device, math, strategy)
        if not tilings:
            raise InspectError(f"no resident {direction} kernel of {cell} in {math} has H = {H}")
        found.append(tilings[0])
    return found[0], found[1]


def rows(cell: str, math: str, arch: str, tilings: tuple[Tiling, Tiling]) -> Iterator[Row]:
    """Every kernel of a training scan, compiled by these tilings (of forward, of backward).

    Raises:
        InspectError: Triton is missing or interprets in this process, or refuses the cell.
        sass.ToolError: the machine code can't be read.
    """
    ahead = _compiler(why_not(CELLS[cell]))
    for kernel in ahead.kernels(cell, math, tilings):
        yield _row(ahead.compile_kernel(kernel, arch))


def own_rows(cell: str, math: str, device: Device, H: int, B: int) -> Iterator[Row]:
    """Every kernel of a training scan of a cell of one's own, as ``device`` gets it.

    Raises:
        InspectError: as ``rows``; or no kernels can be made of the step.
    """
    layout = layout_of(cell, H, True, blocks=True)
    if isinstance(layout, str):
        raise InspectError(layout)
    ahead = _compiler(None)
    for kernel in ahead.own_kernels(text_of(layout), math, device, B):
        yield _row(ahead.compile_kernel(kernel, device.arch))


def _compiler(refusal: str | None) -> Any:
    if refusal is not None:
        raise InspectError(refusal)
    if importlib.util.find_spec("triton") is None:
        raise InspectError("Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InspectError("Triton compiles nothing in a process with TRITON_INTERPRET=1")
    from ..triton import compile as ahead

    return ahead


def _row(made: Any) -> Row:
    if made.assembly:
        code = amd.read_amdgcn(made.assembly)
        figures = (code.vgprs, made.shared, code.scratch, code.spills, code.matrix_core)
        counts = dict(code.kinds())
    else:
        (read,) = sass.read_cubin(made.code)
        stack = read.stack + read.local
        figures = (read.registers, made.shared, stack, read.spills, read.tensor_core)
        counts = {name: n for name, n in read.classes().items() if n}
    return Row(made.kernel.name, made.target, made.num_warps, *figures, counts, made.seconds)


def measure_limits(
    cell: str, math: str, arch: str, tell: Callable[[str], None] = lambda line: None
) -> dict[str, list[int]]:
    """The largest tile at which each resident kernel is clean: {direction: [tile, warps, shared]}.

    From large to small; of the numbers of warps the first that is clean. A tile whose weights are
    larger than shared memory is left out, since they pass through it.
    """
    ahead = _compiler(why_not(CELLS[cell]))
    if arch not in SHARED_MEMORY:
        raise InspectError(f"limits are measured for {', '.join(SHARED_MEMORY)}, not for {arch}")
    found: dict[str, list[int]] = {}
    width = 4 if ahead.STORAGE[math] == "fp32" else 2
    planes = CELLS[cell].gates + int(CELLS[cell].projected)
    tile = LARGEST_TILE
    while tile >= 16 and len(found) < 2:
        fits = planes * tile * tile * width <= SHARED_MEMORY[arch]
        for warps in WARPS[tile] if fits else ():
            tiling = resident_tiling(tile, tile, num_warps=warps)
            pair = ahead.kernels(cell, math, (tiling, tiling))
            for direction, kernel in zip(("forward", "backward"), pair, strict=True):
                if direction in found:
                    continue
                row = _row(ahead.compile_kernel(kernel, arch))
                tell(f"{math} {cell} {direction} tile {tile}: {row._replace(instructions={})}")
                if is_clean(row):
                    found[direction] = [tile, warps, row.shared]
        tile //= 2
    return found
