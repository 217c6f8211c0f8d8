"""What nvcc makes of the CUDA kernels: compiled anew from csrc, for any architecture it knows.

Works without a GPU; needs nvcc and a checkout of the sources.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _ext
from .._build.nvcc import find_nvcc
from ..cells import CELLS
from .sass import Code, read_cubin
from .table import Row

CSRC = Path(__file__).resolve().parents[2] / "csrc"
CELL_TYPES = {
    "rnn_tanh": "RnnTanh",
    "rnn_relu": "RnnTanh",
    "lstm": "Lstm",
    "gru": "Gru",
    "gru_reset_before": "GruResetBefore",
}
MATH_TYPES = {"bf16": "MmaBf16", "fp16": "MmaF16", "tf32": "MmaTf32", "fp32": "MmaFp32"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "float32", "fp32": "float32"}
STEPWISE_SOURCES = {"bf16": "bf16", "fp16": "f16", "tf32": "f32", "fp32": "f32"}
# by compute capability: a GPU that csrc/cuda/plan/plan.h knows
DEVICES = {75: "T4", 80: "A100", 89: "RTX 4090", 90: "H100", 100: "B200"}
THREADS = 256
PASSES = ("forward", "backward")
TEAMS = {"cluster": "ClusterTeam", "grid": "GridTeam"}
_NAME = re.compile(r"sequence_(forward|backward).*?Li(\d+)ELi(\d+)E")
_TEAM_NAME = re.compile(r"team_(forward|backward).*?(ClusterTeam|GridTeam)ELi(\d+)ELi(\d+)E")


class InspectError(RuntimeError):
    """The kernels can't be compiled here; the text says why."""


class Resident(NamedTuple):
    """A resident kernel and its machine code.

    Attributes:
        pass_name: ``forward`` or ``backward``. shape: its index in the list of
        csrc/cuda/solo/shapes.h. groups, held_slabs: what the shape says. math: bf16, fp16, tf32 or
        fp32.
        strategy: ``resident``: one block has all hidden units. ``cluster`` or ``grid``: a team of
        blocks has, and shape is an index into csrc/cuda/team/shapes.h, groups tiles of 16 rows.
    """

    cell: str
    math: str
    pass_name: str
    shape: int
    groups: int
    held_slabs: int
    code: Code
    strategy: str = "resident"


def resident_kernels(cell: str, math: str, arch: int) -> list[Resident]:
    """Every resident kernel of a cell and way of the product, compiled for ``sm_<arch>``.

    Raises:
        InspectError: there is no nvcc, no source or no such kernel, or nvcc fails.
        sass.ToolError: the disassembler is missing or fails.
    """
    if cell not in CELL_TYPES:
        raise InspectError(
            f"no resident kernel computes {cell!r}; there are: {', '.join(CELL_TYPES)}"
        )
    source = _SOURCE.format(cell=CELL_TYPES[cell], math=MATH_TYPES[math])
    found = []
    for code in read_cubin(compile_cubin(source, arch)):
        match = _NAME.search(code.name)
        if match is None:
            continue
        name, groups, held = match.group(1), int(match.group(2)), int(match.group(3))
        listed = [(g, k) for g, k, _, _ in shapes(cell, math, name, 1)]
        shape = listed.index((groups, held))
        found.append(Resident(cell, math, name, shape, groups, held, code))
    return sorted(found, key=lambda k: (PASSES.index(k.pass_name), k.shape))


def team_kernels(cell: str, math: str, arch: int) -> list[Resident]:
    """Every kernel of teams of blocks; empty for strict fp32. Raises what ``resident_kernels``
    raises."""
    if cell not in CELL_TYPES:
        raise InspectError(f"no team computes {cell!r}; there are: {', '.join(CELL_TYPES)}")
    if math == "fp32":
        return []
    source = _TEAM_SOURCE.format(cell=CELL_TYPES[cell], math=MATH_TYPES[math])
    strategies = {name: strategy for strategy, name in TEAMS.items()}
    found = []
    for code in read_cubin(compile_cubin(source, arch)):
        match = _TEAM_NAME.search(code.name)
        if match is None:
            continue
        name, strategy = match.group(1), strategies[match.group(2)]
        tiles, held = int(match.group(3)), int(match.group(4))
        listed = [s[:2] for s in team_shapes(strategy, cell, math, name, 1, 1, 1)]
        shape = listed.index((tiles, held))
        found.append(Resident(cell, math, name, shape, tiles, held, code, strategy))
    return sorted(found, key=lambda k: (k.strategy, PASSES.index(k.pass_name), k.shape))


class Planned(NamedTuple):
    """What a pass of a scan gets: a strategy (``resident``, ``cluster``, ``grid``, ``stepwise``),
    its numbers (csrc/bindings/plan.cpp), and the plan in words."""

    strategy: str
    choice: list[int]
    text: str


def plan(
    pass_name: str, cell: str, math: str, arch: int, sizes: tuple[int, int, int], strategy: str
) -> Planned:
    """The plan for T = 100 steps; ``sizes``: B, H, P; ``strategy``: auto, or as RNNFAST_PLAN.

    Raises InspectError where there is none, or for an architecture without a known GPU.
    """
    module: Any = _ext.cpu()
    if module is None:
        raise InspectError(str(_ext.why_no_cpu()))
    device = _device(arch)
    forced = "" if strategy == "auto" else strategy
    B, H, P = sizes
    try:
        found = module.cuda_plan(
            backward=pass_name == "backward",
            cell=cell,
            dtype=DTYPES[math],
            tf32=math == "tf32",
            T=100,
            B=B,
            H=H,
            P=P,
            directions=1,
            device=device,
            forced=forced,
        )
    except ValueError as error:
        raise InspectError(str(error)) from error
    return Planned(found[0], found[2], found[3])


def _device(arch: int) -> str:
    if arch not in DEVICES:
        raise InspectError(f"no GPU is known for arch {arch}; there are: {sorted(DEVICES)}")
    return DEVICES[arch]


def rows(cell: str, math: str, arch: int, hidden: int, plans: Sequence[Planned]) -> Iterator[Row]:
    """The kernels that these plans (of forward, of backward) run, compiled for ``sm_<arch>``.

    Raises what ``resident_kernels`` raises.
    """
    started = time.monotonic()
    for pass_name, planned in zip(PASSES, plans, strict=True):
        if planned.strategy == "stepwise":
            for of_pass, name, code in stepwise_kernels(cell, math, arch):
                if of_pass == pass_name:
                    yield _row(name, arch, code, code.shared, started)
            continue
        of_teams = planned.strategy in TEAMS
        kernels = (team_kernels if of_teams else resident_kernels)(cell, math, arch)
        wanted = (planned.strategy, pass_name, planned.choice[0])
        for kernel in kernels:
            if (kernel.strategy, kernel.pass_name, kernel.shape) == wanted:
                shared = shared_of(kernel, hidden, planned.choice[1:])
                yield _row(_title(kernel), arch, kernel.code, shared, started)


def shared_of(kernel: Resident, hidden: int, team: Sequence[int]) -> int:
    """Bytes of dynamic shared memory of a block; ``team``: blocks, teams and batch tiles, or ()."""
    cell, math, name = kernel.cell, kernel.math, kernel.pass_name
    if not team:
        return shapes(cell, math, name, hidden)[kernel.shape][2]
    blocks, _, tiles = team
    return team_shapes(kernel.strategy, cell, math, name, hidden, blocks, tiles)[kernel.shape][2]


def _title(kernel: Resident) -> str:
    name = "sequence" if kernel.strategy == "resident" else f"{kernel.strategy}_team"
    return f"{name}_{kernel.pass_name} {kernel.groups}x{kernel.held_slabs}"


def stepwise_source(math: str) -> Path:
    """The file that is compiled for it."""
    return CSRC / "cuda" / "stepwise" / f"{STEPWISE_SOURCES[math]}.cu"


def stepwise_kernels(cell: str, math: str, arch: int) -> list[tuple[str, str, Code]]:
    """(pass, name, code) of every pointwise kernel of the stepwise strategy for a cell."""
    path, spec = stepwise_source(math), CELLS[cell]
    kind = "".join(part.capitalize() for part in cell.split("_"))  # its type in csrc/cells
    helpers = {"forward": ["start"], "backward": ["finish"]}
    if spec.projected:
        helpers["forward"].append("project")
        helpers["backward"].append("unproject")
    found = []
    for code in read_cubin(compile_cubin(f'#include "{path}"\n', arch)):
        match = re.search(r"stepwise_([a-z]+)I", code.name)
        step = match.group(1) if match else ""
        for pass_name in PASSES:
            own = re.search(f"{len(kind)}{kind}ELi(\\d+)E", code.name)
            if step == pass_name and own:
                found.append((pass_name, f"stepwise_{step} phase {own.group(1)}", code))
            elif step in helpers[pass_name]:
                found.append((pass_name, f"stepwise_{step}", code))
    return sorted(found, key=lambda k: k[:2])


def _row(name: str, arch: int, code: Code, shared: int, started: float) -> Row:
    counts = {kind: n for kind, n in code.classes().items() if n}
    stack, seconds = code.stack + code.local, time.monotonic() - started
    figures = (code.registers, shared, stack, code.spills, code.tensor_core)
    return Row(name, f"sm_{arch}", THREADS // 32, *figures, counts, seconds)


ShapeNumbers = tuple[int, int, int, bool]


def shapes(cell: str, math: str, pass_name: str, hidden: int) -> Sequence[ShapeNumbers]:
    """Of each compiled shape: groups, slabs in registers, bytes of shared memory for ``hidden``
    units, and whether those fit the warps. Raises InspectError where the extension is missing."""
    module: Any = _ext.load()
    if module is None:
        raise InspectError(str(_ext.why_missing()))
    return module.cuda_shapes(pass_name == "backward", cell, math, hidden)


TeamShapeNumbers = tuple[int, int, int, bool]


def team_shapes(
    strategy: str, cell: str, math: str, pass_name: str, hidden: int, blocks: int, tiles: int
) -> Sequence[TeamShapeNumbers]:
    """Of each compiled kernel of a kind of team: tiles of 16 rows, slabs in registers, bytes of
    shared memory for ``hidden`` units over ``blocks`` blocks with ``tiles`` batch tiles, and
    whether those fit an H100. Raises InspectError where the extension is missing."""
    module: Any = _ext.load()
    if module is None:
        raise InspectError(str(_ext.why_missing()))
    numbers = (hidden, blocks, tiles)
    return module.cuda_team_shapes(strategy, pass_name == "backward", cell, math, *numbers)


def largest_hidden(
    cell: str, math: str, pass_name: str, shape: int, arch: int, strategy: str = "resident"
) -> int:
    """The most hidden units that a compiled shape takes on the known GPU of an architecture; 0
    where it can't run there. Raises InspectError for an architecture without a known GPU."""
    _device(arch)
    low, high = 0, 16384
    while low < high:
        middle = (low + high + 1) // 2
        try:
            plan(
                pass_name, cell, math, arch, (1, middle, middle), f"{strategy}:{pass_name}={shape}"
            )
        except InspectError:  # it does not fit
            high = middle - 1
        else:
            low = middle
    return low


def limits(cell: str, math: str, arch: int) -> Iterator[Row]:
    """Every kernel that keeps the weights, with the shared memory of the most hidden units that it
    takes for a batch of one tile.

    Raises what ``resident_kernels`` and ``largest_hidden`` raise.
    """
    _device(arch)
    started = time.monotonic()
    for kernel in resident_kernels(cell, math, arch) + team_kernels(cell, math, arch):
        of_shape = (kernel.pass_name, kernel.shape)
        most = largest_hidden(cell, math, *of_shape, arch, kernel.strategy)
        shared = 0
        if most > 0:
            forced = f"{kernel.strategy}:{kernel.pass_name}={kernel.shape}"
            planned = plan(kernel.pass_name, cell, math, arch, (1, most, most), forced)
            shared = shared_of(kernel, most, planned.choice[1:])
        yield _row(f"{_title(kernel)}, H <= {most}", arch, kernel.code, shared, started)


@functools.lru_cache(maxsize=8)
def compile_cubin(source: str, arch: int) -> bytes:
    """The cubin of a CUDA source that may include csrc's headers. Raises InspectError."""
    if not (CSRC / "cuda").is_dir():
        raise InspectError(f"the kernels' sources are not installed ({CSRC}); use a checkout")
    search = find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        raise InspectError(f"there is no nvcc: {search.why_not()}")
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        path.write_text(source)
        command = [str(search.nvcc.path), "-std=c++17", "-O3", "-cubin", f"-arch=sm_{arch}"]
        command += [f"-I{CSRC}", str(path), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise InspectError(f"nvcc failed: {done.stderr.strip()[:2000]}")
        return out.read_bytes()


_SOURCE = """
#include "cuda/solo/dispatch.h"
namespace rnnfast::cuda {{
void forward(int shape, const ForwardArgs& args, Stream stream) {{
  detail::run_cell<Pass::kForward, {cell}, {math}>(shape, args, stream);
}}
void backward(int shape, const BackwardArgs& args, Stream stream) {{
  detail::run_cell<Pass::kBackward, {cell}, {math}>(shape, args, stream);
}}
}}
"""

_TEAM_SOURCE = """
#include "cuda/team/dispatch.h"
namespace rnnfast::cuda {{
void forward(const TeamLaunch<ForwardArgs>& run) {{
  detail::ask_cell<Pass::kForward, {cell}, {math}>(TeamAsk::kLaunch, run);
}}
void backward(const TeamLaunch<BackwardArgs>& run) {{
  detail::ask_cell<Pass::kBackward, {cell}, {math}>(TeamAsk::kLaunch, run);
}}
}}
"""
