"""``python -m rnnfast inspect``: what the compiler makes of a cell's kernels. Needs no GPU."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from ..cells import CELLS
from ..triton.plan import Device
from . import cuda, triton
from .sass import ToolError
from .table import render


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m rnnfast inspect",
        description="Compiles the kernels of a training scan and prints registers, shared memory "
        "(bytes), stack (bytes), spills, tensor-core products and instruction counts.",
    )
    made.add_argument("--backend", choices=["cuda", "triton"], default="triton")
    made.add_argument("--cell", default="lstm", help="built in, of the family, or module:cell")
    made.add_argument("--hidden", type=int, default=128, help="H (default 128)")
    made.add_argument("--proj", type=int, default=0, help="P of lstm_proj (default H)")
    made.add_argument("--batch", type=int, default=16, help="B, for the plan (default 16)")
    made.add_argument("--dtype", choices=["bf16", "fp16", "tf32", "fp32"], default="bf16")
    made.add_argument("--arch", default="90", help="80, 90, 100, … or gfx942 (default 90)")
    made.add_argument(
        "--strategy", choices=["auto", "resident", "cluster", "grid", "stepwise"], default="auto"
    )
    made.add_argument(
        "--limits",
        action="store_true",
        help="how large resident kernels get: for cuda each compiled one with the largest H that "
        "it takes, for triton the largest tiles, measured, as JSON",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; 1 where nothing can be compiled or read, with the reason."""
    asked = parser().parse_args(argv)
    if asked.hidden < 1 or asked.batch < 1 or asked.proj < 0:
        parser().error("--hidden and --batch should be positive, --proj not negative")
    if (refusal := _why_unknown(asked.cell)) is not None:
        parser().error(refusal)
    try:
        if asked.limits and asked.backend == "triton":
            tell = lambda line: print(line, file=sys.stderr)  # noqa: E731
            found = triton.measure_limits(asked.cell, asked.dtype, asked.arch, tell)
            print(json.dumps({asked.arch: {asked.dtype: {asked.cell: found}}}))
            return 0
        proj = asked.proj or asked.hidden
        if asked.backend == "cuda":
            return _print_cuda(asked, proj)
        if CELLS[asked.cell].own:
            return _print_own(asked)
        tilings = triton.tilings_for(
            asked.cell, asked.dtype, asked.arch, asked.hidden, proj, asked.batch, asked.strategy
        )
        for direction, tiling in zip(("forward", "backward"), tilings, strict=True):
            print(f"{direction}: {tiling.describe()}")
        print()
        print(render(list(triton.rows(asked.cell, asked.dtype, asked.arch, tilings))))
    except (cuda.InspectError, triton.InspectError, ToolError) as error:
        print(f"rnnfast inspect: {error}", file=sys.stderr)
        return 1
    return 0


def _print_cuda(asked: argparse.Namespace, proj: int) -> int:
    if not asked.arch.isdigit():
        raise cuda.InspectError(f"nvcc knows no arch {asked.arch!r}; give a number, such as 90")
    arch, sizes = int(asked.arch), (asked.batch, asked.hidden, proj)
    if asked.limits:
        print(render(list(cuda.limits(asked.cell, asked.dtype, arch))))
        return 0
    plans = [
        cuda.plan(pass_name, asked.cell, asked.dtype, arch, sizes, asked.strategy)
        for pass_name in cuda.PASSES
    ]
    for pass_name, planned in zip(cuda.PASSES, plans, strict=True):
        print(f"{pass_name}: {planned.text}")
    print()
    print(render(list(cuda.rows(asked.cell, asked.dtype, arch, asked.hidden, plans))))
    return 0


def _why_unknown(cell: str) -> str | None:
    """Why there is no such cell; a module that ``cell`` names is imported."""
    module, colon, _ = cell.partition(":")
    try:
        if colon and cell not in CELLS:
            importlib.import_module(module)
    except ImportError as error:
        return f"--cell {cell}: {error}"
    known = [name for name in CELLS if ":" not in name]
    return None if cell in CELLS else f"there is no cell {cell}; there are {', '.join(known)}"


def _print_own(asked: argparse.Namespace) -> int:
    device = Device(asked.arch, asked.arch, triton.SHARED_MEMORY.get(asked.arch, 64 << 10))
    found = triton.own_rows(asked.cell, asked.dtype, device, asked.hidden, asked.batch)
    print(f"{asked.cell}, H {asked.hidden}: launches of a step, forward and backward\n")
    print(render(list(found)))
    return 0
