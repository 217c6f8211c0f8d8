"""What the CUDA launchers ask of the driver, by a program with a driver of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from rnnfast._build import host
from rnnfast._build.nvcc import find_nvcc, toolkit_root

ROOT = Path(__file__).resolve().parents[2]


def test_launches_against_a_driver_that_stands_in(tmp_path: Path) -> None:
    search = find_nvcc(torch.version.cuda)
    compiler, why = host.find_compiler(os.environ)
    if search.nvcc is None or compiler is None:
        pytest.skip(f"needs CUDA's headers and a compiler: {why or search.why_not()}")
    program = tmp_path / "driver"
    source = ROOT / "tests/build/driver.cpp"
    flags = ["-std=c++17", f"-I{ROOT / 'csrc'}", f"-I{toolkit_root(search.nvcc) / 'include'}"]
    subprocess.run([*compiler.command, *flags, str(source), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
