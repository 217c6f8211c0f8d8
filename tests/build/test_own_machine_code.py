"""Cells of one's own in CUDA C++: what nvcc makes of their text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from rnnfast import library
from rnnfast._build.nvcc import find_nvcc
from rnnfast.cells import CELLS
from rnnfast.inspect.sass import Code, ToolError, find_tool, read_cubin
from rnnfast.steps import resident, run_cuda
from rnnfast.steps.cuda_text import cuda_source
from rnnfast.steps.gpu import layout_of
from rnnfast.steps.layout import Layout
from rnnfast.steps.resident import Shape

from .. import own_cells
from ..simt import own_cases

FAMILY = sorted(name for name, spec in CELLS.items() if spec.own and ":" not in name)
ARCHS = ("sm_80", "sm_90")
SAMPLE = [("layer_norm_lstm", "sm_90")]
REST = [(cell, arch) for cell in FAMILY for arch in ARCHS if (cell, arch) not in SAMPLE]
RESIDENT = [
    (own_cells.lstm.name, "bf16", 128),
    (own_cells.lstm.name, "tf32", 128),
    (own_cells.lstm.name, "fp32", 128),
    (own_cells.gru.name, "bf16", 192),
    (own_cells.gru.name, "fp32", 128),
    (own_cells.rnn_tanh.name, "bf16", 256),
    (own_cells.rnn_tanh.name, "bf16", 384),
    ("peephole_lstm", "bf16", 128),
    ("coupled_lstm", "bf16", 128),
    ("ligru", "bf16", 256),
]
REGISTERS = 255  # of a thread: a block of 256 on a multiprocessor
PRODUCT_REGISTERS = 128  # two


def compiled(text: str, arch: str, folder: Path) -> list[Code]:
    search = find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        pytest.skip(f"needs nvcc: {search.why_not()}")
    try:
        find_tool("nvdisasm")
    except ToolError as error:
        pytest.skip(f"needs a disassembler: {error}")
    (folder / "cell.cu").write_text(text)
    command = [str(search.nvcc.path), "-std=c++17", "-O3", "-DNDEBUG", "-cubin", f"-arch={arch}"]
    command += [f"-I{library.include_folder()}", "-o", "cell.cubin", "cell.cu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return read_cubin((folder / "cell.cubin").read_bytes())


def layout(cell: str, hidden: int) -> Layout:
    found = layout_of(cell, hidden, True, blocks=True)
    assert not isinstance(found, str), found
    return found


def check(cell: str, arch: str, folder: Path, hidden: int = 32) -> None:
    for code in compiled(cuda_source(layout(cell, hidden)).text, arch, folder):
        assert code.spills == 0, f"{code.name}: {code.spills} accesses to local memory"
        assert code.stack == code.local == 0, f"{code.name}: a stack"
        most = REGISTERS if "own_rows" in code.name else PRODUCT_REGISTERS
        assert code.registers <= most, f"{code.name}: {code.registers} registers"
        assert code.shared <= 48 << 10, f"{code.name}: {code.shared} bytes of shared memory"


@pytest.mark.parametrize(("cell", "arch"), SAMPLE)
def test_a_cell_keeps_its_budget(cell: str, arch: str, tmp_path: Path) -> None:
    check(cell, arch, tmp_path)


def test_operands_of_many_heads_are_one(tmp_path: Path) -> None:
    check(own_cases.many_heads.name, "sm_90", tmp_path, 3 * own_cases.MANY)


def check_resident(
    cell: str, math: str, hidden: int, pass_name: str, arch: str, folder: Path
) -> None:
    of, budget = layout(cell, hidden), resident.budget_of(arch)
    chosen = run_cuda.shape(of, pass_name, math, budget)
    assert isinstance(chosen, Shape), chosen
    (code,) = (
        code
        for code in compiled(run_cuda.source_of(of, pass_name, chosen)[0].text, arch, folder)
        if "resident" in code.name
    )
    assert code.spills == code.stack == code.local == 0, f"{code.spills} accesses to local memory"
    assert code.registers <= REGISTERS
    assert (code.tensor_core > 0) == (math != "fp32")


def test_a_pass_in_one_launch_keeps_its_budget(tmp_path: Path) -> None:
    check_resident("peephole_lstm", "bf16", 128, "backward", "sm_90", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pass_name", resident.PASSES)
@pytest.mark.parametrize(("cell", "math", "hidden"), RESIDENT)
def test_every_pass_in_one_launch_keeps_its_budget(
    cell: str, math: str, hidden: int, pass_name: str, tmp_path: Path
) -> None:
    check_resident(cell, math, hidden, pass_name, "sm_90", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "arch"), REST)
def test_every_cell_keeps_its_budget(cell: str, arch: str, tmp_path: Path) -> None:
    check(cell, arch, tmp_path)
