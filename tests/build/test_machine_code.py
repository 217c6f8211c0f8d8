"""The budgets of the resident CUDA kernels, read from what nvcc makes of them."""

from __future__ import annotations

import pytest
import torch

from rnnfast import _ext
from rnnfast._build.nvcc import find_nvcc
from rnnfast.inspect import cuda
from rnnfast.inspect.sass import ToolError, find_tool

ARCHS = (80, 90, 100, 120)
CELLS = ("rnn_tanh", "lstm", "gru", "gru_reset_before")
SAMPLE = [("lstm", "bf16", 90), ("gru_reset_before", "fp32", 80)]
EVERY = [(c, m, a) for c in CELLS for m in cuda.MATH_TYPES for a in ARCHS]

# One budget for all: a block of 256 threads with 255 registers each fills a multiprocessor's 64 Ki.
REGISTERS = 255
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


def check(cell: str, math: str, arch: int) -> None:
    require_tools()
    kernels = cuda.resident_kernels(cell, math, arch)
    assert {k.pass_name for k in kernels} == set(cuda.PASSES)
    for kernel in kernels:
        code, at = kernel.code, f"{kernel.pass_name} shape {kernel.shape} ({kernel.code.name})"
        assert code.spills == 0, f"{at}: {code.spills} accesses to local memory"
        assert code.stack == code.local == 0, f"{at}: a stack of {code.stack + code.local} bytes"
        assert code.registers <= REGISTERS, f"{at}: {code.registers} registers"
        if math == "fp32":
            assert code.tensor_core == 0, f"{at}: tensor cores in strict fp32"
        else:
            assert code.tensor_core >= TENSOR_CORE, f"{at}: {code.tensor_core} tensor-core products"
        if cell != "rnn_tanh":  # a unit's four slots at once
            width = "64" if math in ("bf16", "fp16") else "128"
            assert code.wide("LDG", width), f"{at}: no load of {width} bits"
            assert code.wide("STG", width), f"{at}: no store of {width} bits"


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


def test_a_source_that_does_not_compile_says_so() -> None:
    require_tools()
    with pytest.raises(cuda.InspectError, match="nvcc failed"):
        cuda.compile_cubin("not C++", 90)
