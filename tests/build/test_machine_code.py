"""The budgets of the resident CUDA kernels, read from what nvcc makes of them."""

from __future__ import annotations

import re

import pytest
import torch

from rnnfast import _ext
from rnnfast._build.nvcc import find_nvcc
from rnnfast.inspect import cuda
from rnnfast.inspect.cli import main
from rnnfast.inspect.sass import ToolError, find_tool

ARCHS = (80, 90, 100, 120)
CELLS = ("rnn_tanh", "lstm", "gru", "gru_reset_before")
SAMPLE = [("lstm", "bf16", 90), ("gru_reset_before", "fp32", 80)]
EVERY = [(c, m, a) for c in CELLS for m in cuda.MATH_TYPES for a in ARCHS]

# One budget for all: a block of 256 threads with 255 registers each fills a multiprocessor's 64 Ki.
REGISTERS = 255
# Accesses to local memory that are allowed, by (cell, math, arch, strategy, pass, shape): ptxas for
# sm_100 keeps one word of a thread, a gradient, there over the first product: a store and a load in
# a step of some 1,400 instructions. A slab less in registers would be 16 KiB from shared memory.
SPILLS = {
    ("gru_reset_before", math, 100, "resident", "backward", 1): 2 for math in ("bf16", "fp16")
}
# Instructions of one kind that a kernel has at least: without them the design is not what ran.
TENSOR_CORE = 8


def require_tools() -> None:
    search = find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        pytest.skip(f"needs nvcc: {search.why_not()}")
    if _ext.load() is None:
        pytest.skip(f"needs the extension, for the list of shapes: {_ext.why_missing()}")
    try:
        find_tool("nvdisasm")
    except ToolError as error:
        pytest.skip(f"needs a disassembler: {error}")


def kernels_of(cell: str, math: str, arch: int) -> list[cuda.Resident]:
    """Those that a device of this architecture can launch."""
    teams = cuda.team_kernels(cell, math, arch)
    if arch < 90:  # no clusters
        teams = [k for k in teams if k.strategy == "grid"]
    return cuda.resident_kernels(cell, math, arch) + teams


def check(cell: str, math: str, arch: int) -> None:
    require_tools()
    kernels = kernels_of(cell, math, arch)
    strategies = {"resident", *((["cluster"] if arch >= 90 else []) + ["grid"])}
    expected = {"resident"} if math == "fp32" else strategies
    assert {(k.strategy, k.pass_name) for k in kernels} == {
        (strategy, name) for strategy in expected for name in cuda.PASSES
    }
    for kernel in kernels:
        code = kernel.code
        at = f"{kernel.strategy} {kernel.pass_name} shape {kernel.shape} ({code.name})"
        of = (cell, math, arch, kernel.strategy, kernel.pass_name, kernel.shape)
        accesses, stack = SPILLS.get(of, 0), code.stack + code.local
        assert code.spills <= accesses, f"{at}: {code.spills} accesses to local memory"
        assert stack <= 4 * accesses, f"{at}: a stack of {stack} bytes"
        assert code.registers <= REGISTERS, f"{at}: {code.registers} registers"
        if math == "fp32":
            assert code.tensor_core == 0, f"{at}: tensor cores in strict fp32"
        else:
            assert code.tensor_core >= TENSOR_CORE, f"{at}: {code.tensor_core} tensor-core products"
        if cell != "rnn_tanh":  # a unit's four slots at once
            width = "64" if math in ("bf16", "fp16") else "128"
            assert code.wide("LDG", width), f"{at}: no load of {width} bits"
            assert code.wide("STG", width), f"{at}: no store of {width} bits"
        if kernel.strategy == "grid":  # the operands of others, through L2
            assert code.wide("LDG", "128"), f"{at}: no load of 128 bits"


@pytest.mark.parametrize(("cell", "math", "arch"), SAMPLE)
def test_a_kernel_keeps_its_budget(cell: str, math: str, arch: int) -> None:
    check(cell, math, arch)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "math", "arch"), EVERY)
def test_every_kernel_keeps_its_budget(cell: str, math: str, arch: int) -> None:
    check(cell, math, arch)


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(cuda.InspectError, match="no resident kernel computes 'lstm_proj'"):
        cuda.resident_kernels("lstm_proj", "bf16", 90)


@pytest.mark.parametrize("math", cuda.STEPWISE_SOURCES)
def test_the_stepwise_sources_are_there(math: str) -> None:
    assert cuda.stepwise_source(math).is_file()


def test_a_source_that_does_not_compile_says_so() -> None:
    require_tools()
    with pytest.raises(cuda.InspectError, match="nvcc failed"):
        cuda.compile_cubin("not C++", 90)


def test_the_limits_of_each_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    require_tools()
    cell, math, arch = SAMPLE[0]
    assert main(["--backend", "cuda", "--limits", "--cell", cell, "--dtype", math]) == 0
    shown = capsys.readouterr().out
    kernels = cuda.resident_kernels(cell, math, arch) + cuda.team_kernels(cell, math, arch)
    pattern = r"^(sequence|cluster_team|grid_team)_(\w+) (\d+)x(\d+), H <= (\d+)"
    listed = re.findall(pattern, shown, re.MULTILINE)
    assert len(listed) == len(kernels)
    for kernel, (*_, groups, held, most) in zip(kernels, listed, strict=True):
        assert (kernel.groups, kernel.held_slabs) == (int(groups), int(held))
        pass_name, shape, strategy, H = kernel.pass_name, kernel.shape, kernel.strategy, int(most)
        assert cuda.largest_hidden(cell, math, pass_name, shape, arch, strategy) == H
        forced = f"{strategy}:{pass_name}={shape}"
        assert cuda.plan(pass_name, cell, math, arch, (1, H, H), forced).choice[0] == shape
        with pytest.raises(cuda.InspectError, match="does not fit"):
            cuda.plan(pass_name, cell, math, arch, (1, H + 1, H + 1), forced)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--cell", "lstm_proj"], "no resident kernel computes 'lstm_proj'"),
        (["--arch", "86"], "no GPU is known for arch 86"),
        (["--arch", "gfx942"], "nvcc knows no arch 'gfx942'"),
    ],
)
def test_limits_that_nobody_knows(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--backend", "cuda", "--limits", *arguments]) == 1
    assert reason in capsys.readouterr().err
