"""What the CUDA launchers ask of the driver, by programs with a driver of their own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from rnnfast._build import host
from rnnfast._build.nvcc import find_nvcc, toolkit_root

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, sources: list[str]) -> None:
    """Builds the program and runs it; it is to find nothing wrong."""
    search = find_nvcc(torch.version.cuda)
    compiler, why = host.find_compiler(os.environ)
    if search.nvcc is None or compiler is None:
        pytest.skip(f"needs CUDA's headers and a compiler: {why or search.why_not()}")
    folders = [ROOT / "csrc", toolkit_root(search.nvcc) / "include"]
    flags = ["-std=c++17", "-pthread", *(f"-I{path}" for path in folders)]
    files = [str(ROOT / source) for source in sources]
    program = folder / "program"
    subprocess.run([*compiler.command, *flags, *files, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_launches_against_a_driver_that_stands_in(tmp_path: Path) -> None:
    run(tmp_path, ["tests/build/driver.cpp"])


def test_launches_that_wait_for_one_another_take_turns(tmp_path: Path) -> None:
    run(tmp_path, ["tests/build/turn.cpp", "csrc/ops_cuda/turn.cpp"])


LAUNCHER = "csrc/cuda/device/launch.h"  # knows the opt-in, and throws the driver's refusals
OF_LAUNCHES = re.compile(r"<<<|cudaLaunch\w*Kernel|cuLaunchKernel|cudaFuncSetAttribute")


def test_nothing_else_launches() -> None:
    """One place for the opt-in and the errors of every kernel, those of the rates among them."""
    found = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "benchmarks", "rnnfast")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".h", ".inc", ".cu", ".cpp", ".py")
        if OF_LAUNCHES.search(path.read_text(encoding="utf-8"))
    }
    assert found == {LAUNCHER}
