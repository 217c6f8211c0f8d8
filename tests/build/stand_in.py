"""Two devices without a GPU: devices.cpp, which has to be loaded before torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from rnnfast import _ext
from rnnfast._build import host
from rnnfast._build.nvcc import find_nvcc, toolkit_root


def stand_in(folder: Path) -> tuple[Path, dict[str, str]]:
    """The library, compiled into ``folder``, and the environment of a process that has it; or the
    test is skipped."""
    compiler, why = host.find_compiler(os.environ)
    search = find_nvcc(torch.version.cuda)
    if (missing := _ext.why_no_cuda()) is not None:
        pytest.skip(missing)
    if search.nvcc is None or search.nvcc.major != "13" or compiler is None:
        pytest.skip(f"needs the headers of CUDA 13 and a compiler: {why or search.why_not()}")
    library = folder / "libdevices.so"
    # Opened again as the driver, by its name.
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    include = f"-I{toolkit_root(search.nvcc) / 'include'}"
    source = str(Path(__file__).with_name("devices.cpp"))
    subprocess.run([*compiler.command, *flags, include, source, "-o", str(library)], check=True)
    # cublasLt, which torch takes for a product and a bias, has no stand-in.
    environment = {**os.environ, "LD_PRELOAD": str(library), "DISABLE_ADDMM_CUDA_LT": "1"}
    return library, environment | {"CUDA_VISIBLE_DEVICES": "0,1"}
