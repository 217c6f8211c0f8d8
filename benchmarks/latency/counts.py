"""How many instructions a step of the shipped kernels runs, read from what nvcc makes of them.

Each kernel is compiled alone, so a table costs what it looks at: a few seconds a kernel, kept in
build/latency until a source changes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rnnfast._build.nvcc import find_nvcc
from rnnfast.inspect import cuda
from rnnfast.inspect.sass import run_tool

from ..table import write_text
from .loops import StepLoop, kernels, step_loop

CACHE = Path(__file__).resolve().parents[2] / "build" / "latency"
# of a strategy: the header, the kernel's name, its team, and how its arguments are wrapped
STRATEGIES = {
    "resident": ("solo/{0}.h", "sequence_{0}", "SoloTeam", "{1}"),
    "cluster": ("team/{0}.h", "team_{0}", "ClusterTeam", "WithTeam<{1}>"),
    "grid": ("team/{0}.h", "team_{0}", "GridTeam", "WithTeam<{1}>"),
}
TEAM_HEADERS = {"resident": "solo/team.h", "cluster": "team/cluster.h", "grid": "team/grid.h"}
ARGUMENTS = {"forward": "ForwardArgs", "backward": "BackwardArgs"}


class Kernel(NamedTuple):
    """One compiled kernel; rows and held: the two numbers of its shape (csrc/cuda/*/shapes.h)."""

    strategy: str
    pass_name: str
    cell: str
    math: str
    rows: int
    held: int


def why_not() -> str:
    """Why nothing can be counted here, or empty."""
    if not (cuda.CSRC / "cuda").is_dir():
        return f"the kernels' sources are not installed ({cuda.CSRC})"
    search = find_nvcc(torch.version.cuda)
    return "" if search.nvcc is not None else f"there is no nvcc: {search.why_not()}"


def source(kernel: Kernel) -> str:
    """A translation unit that holds this kernel only."""
    header, name, team, wrapped = STRATEGIES[kernel.strategy]
    arguments = wrapped.format(kernel.pass_name, ARGUMENTS[kernel.pass_name])
    types = (cuda.CELL_TYPES[kernel.cell], cuda.MATH_TYPES[kernel.math], team)
    return (
        f'#include "cuda/{TEAM_HEADERS[kernel.strategy]}"\n'
        f'#include "cuda/{header.format(kernel.pass_name)}"\n'
        "namespace rnnfast::cuda {\n"
        f"template RNNFAST_KERNEL(kThreads) {name.format(kernel.pass_name)}"
        f"<{', '.join(types)}, {kernel.rows}, {kernel.held}>(RNNFAST_ARGS {arguments});\n"
        "}\n"
    )


def count(kernel: Kernel, arch: int) -> StepLoop:
    """The step loop of a kernel on ``sm_<arch>``.

    Raises:
        inspect.cuda.InspectError: there is no nvcc, or it fails.
        inspect.sass.ToolError: the disassembler is missing or fails.
        loops.LoopError: the machine code has no step loop.
    """
    text = source(kernel)
    path = CACHE / f"{_digest(text, arch)}.json"
    if path.is_file():
        return _decode(json.loads(path.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(cuda.compile_cubin(text, arch))
        found = kernels(run_tool("nvdisasm", "-c", str(cubin)))
    loop = step_loop(max(found.values(), key=len))
    write_text(path, json.dumps(_encode(loop)))
    return loop


def count_all(
    wanted: Iterable[Kernel], arch: int, tell: Callable[[str], None]
) -> dict[Kernel, StepLoop]:
    """``count`` of each, with a line of progress before each; raises what it raises."""
    found = {}
    todo = list(dict.fromkeys(wanted))
    for place, kernel in enumerate(todo, 1):
        tell(f"counting {place}/{len(todo)}: sm_{arch} {' '.join(map(str, kernel))}")
        found[kernel] = count(kernel, arch)
    return found


def _digest(text: str, arch: int) -> str:
    """Of all that the machine code depends on."""
    made = hashlib.sha256(f"{text}\n{arch}\n{torch.version.cuda}\n{_READER}".encode())
    for folder in ("cuda", "cells", "scan"):
        for path in sorted((cuda.CSRC / folder).rglob("*.h")):
            made.update(path.read_bytes())
    return made.hexdigest()[:20]


_READER = Path(__file__).with_name("loops.py").read_text()


def _encode(loop: StepLoop) -> list[object]:
    return [loop.product, dict(loop.straight), [dict(turn) for turn in loop.inner], loop.copies]


def _decode(stored: list[Any]) -> StepLoop:
    product, straight, inner, copies = stored
    return StepLoop(product, Counter(straight), tuple(Counter(turn) for turn in inner), copies)
