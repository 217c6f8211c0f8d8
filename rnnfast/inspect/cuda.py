"""What nvcc makes of the CUDA kernels: compiled anew from csrc, for any architecture it knows.

Works without a GPU; needs nvcc and a checkout of the sources.
"""

from __future__ import annotations

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
STEPWISE_TYPES = {
    **CELL_TYPES,
    "rnn_relu": "RnnRelu",
    "lstm_proj": "LstmProj",
}
# by compute capability: a GPU that csrc/cuda/plan.h knows
DEVICES = {75: "T4", 80: "A100", 89: "RTX 4090", 90: "H100", 100: "B200"}
THREADS = 256
PASSES = ("forward", "backward")
_NAME = re.compile(r"sequence_(forward|backward).*?Li(\d+)ELi(\d+)E")


class InspectError(RuntimeError):
    """The kernels can't be compiled here; the text says why."""


class Resident(NamedTuple):
    """A resident kernel and its machine code.

    Attributes:
        pass_name: ``forward`` or ``backward``. shape: its index in the list of csrc/cuda/shapes.h.
        groups, held_slabs: what the shape says. math: bf16, fp16, tf32 or fp32.
    """

    cell: str
    math: str
    pass_name: str
    shape: int
    groups: int
    held_slabs: int
    code: Code


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


class Planned(NamedTuple):
    """What a pass of a scan gets: ``resident`` or ``stepwise``, and its plan in words."""

    strategy: str
    shape: int
    text: str


def plan(
    pass_name: str, cell: str, math: str, arch: int, sizes: tuple[int, int, int], strategy: str
) -> Planned:
    """The plan for T = 100 steps; ``sizes``: B, H, P; ``strategy``: auto, resident or stepwise.

    Raises InspectError where there is none, or for an architecture without a known GPU.
    """
    module: Any = _ext.load()
    if module is None:
        raise InspectError(str(_ext.why_missing()))
    if arch not in DEVICES:
        raise InspectError(f"no GPU is known for arch {arch}; there are: {sorted(DEVICES)}")
    forced = "" if strategy == "auto" else strategy
    backward, dtype = pass_name == "backward", DTYPES[math]
    try:
        found = module.cuda_plan(
            backward, cell, dtype, math == "tf32", 100, *sizes, 1, DEVICES[arch], forced
        )
    except ValueError as error:
        raise InspectError(str(error)) from error
    return Planned(found[0], found[2], found[3])


def rows(cell: str, math: str, arch: int, hidden: int, plans: Sequence[Planned]) -> Iterator[Row]:
    """The kernels that these plans (of forward, of backward) run, compiled for ``sm_<arch>``.

    Raises what ``resident_kernels`` raises.
    """
    started = time.monotonic()
    resident = stepwise = None
    for pass_name, planned in zip(PASSES, plans, strict=True):
        if planned.strategy == "resident":
            resident = resident or resident_kernels(cell, math, arch)
            for kernel in resident:
                if (kernel.pass_name, kernel.shape) == (pass_name, planned.shape):
                    shared = shapes(cell, math, pass_name, hidden)[kernel.shape][2]
                    name = f"sequence_{pass_name} {kernel.groups}x{kernel.held_slabs}"
                    yield _row(name, arch, kernel.code, shared, started)
        else:
            stepwise = stepwise or stepwise_kernels(cell, math, arch)
            for of_pass, name, code in stepwise:
                if of_pass == pass_name:
                    yield _row(name, arch, code, code.shared, started)


def stepwise_kernels(cell: str, math: str, arch: int) -> list[tuple[str, str, Code]]:
    """(pass, name, code) of every pointwise kernel of the stepwise strategy for a cell."""
    path = CSRC / "cuda" / f"stepwise_{STEPWISE_SOURCES[math]}.cu"
    kind, spec = STEPWISE_TYPES[cell], CELLS[cell]
    helpers = {"forward": ["start"], "backward": ["finish"]}
    if cell == "gru_reset_before":
        helpers["forward"].append("reset")
        helpers["backward"].append("candidate")
    if spec.projected:
        helpers["forward"].append("project")
        helpers["backward"].append("unproject")
    found = []
    for code in read_cubin(compile_cubin(f'#include "{path}"\n', arch)):
        match = re.search(r"stepwise_([a-z]+)I", code.name)
        step = match.group(1) if match else ""
        for pass_name in PASSES:
            own = step == pass_name and f"{len(kind)}{kind}E" in code.name
            if own or step in helpers[pass_name]:
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


def largest_hidden(cell: str, math: str, pass_name: str, shape: int, shared_limit: int) -> int:
    """The most hidden units that a shape takes where a block may have ``shared_limit`` bytes."""
    low, high = 0, 4096
    while low < high:
        middle = (low + high + 1) // 2
        _, _, bytes_, fits = shapes(cell, math, pass_name, middle)[shape]
        low, high = (middle, high) if fits and bytes_ <= shared_limit else (low, middle - 1)
    return low


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
#include "cuda/sequence_dispatch.h"
namespace rnnfast::cuda {{
void forward(int shape, const ForwardArgs& args, Stream stream) {{
  detail::run_cell<Pass::kForward, {cell}, {math}>(shape, args, stream);
}}
void backward(int shape, const BackwardArgs& args, Stream stream) {{
  detail::run_cell<Pass::kBackward, {cell}, {math}>(shape, args, stream);
}}
}}
"""
