"""The CUDA sources compile, link and load with the nvcc of PATH and the pip one, without a GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rnnfast._build import host, nvcc, torchinfo
from rnnfast._build.recipe import gencode

from .support import ROOT

# Launches with no device in sight, and hands what was thrown to Python as text.
PROBE = """
#include <cstring>
#include <exception>
#include "clip/cuda.h"
extern "C" void probe(char* message, int size) {
  try {
    rnnfast::cuda::launch_clip({}, 1, nullptr);
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), size - 1);
  }
}
"""

CALL = """
import ctypes, sys
text = ctypes.create_string_buffer(1000)
ctypes.CDLL(sys.argv[1])
ctypes.CDLL(sys.argv[2]).probe(text, 1000)
print(text.value.decode())
"""


def find(source: str) -> nvcc.Nvcc:
    """The nvcc of one place alone: the others are kept out of sight."""
    if torch.version.cuda is None:
        pytest.skip("torch is built without CUDA: its CUDA runtime isn't there to link")
    on_path = {"PATH": os.environ["PATH"]} if source == "PATH" else {"PATH": os.devnull}
    sites = nvcc.pip_site_dirs() if source == "pip" else []
    search = nvcc.find_nvcc(torch.version.cuda, on_path, sites)
    if search.nvcc is None:
        pytest.skip(f"no nvcc from {source}: {search.why_not()}")
    assert search.nvcc.source == source
    return search.nvcc


def call(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("source", ["PATH", "pip"])
def test_compile_link_load_and_a_failed_launch_names_kernel_and_shape(source, tmp_path: Path):
    compiler = find(source)
    cxx, reason = host.find_compiler()
    if cxx is None:
        pytest.skip(reason)
    cudart = torchinfo.find_torch().cudart_library()
    if cudart is None:
        pytest.skip("torch's CUDA runtime is not that of the pip wheels")
    flags = ["-std=c++17", "-I", ROOT / "csrc"]
    cuda_object, library = tmp_path / "clip.o", tmp_path / "probe.so"
    source_file = ROOT / "csrc/clip/cuda.cu"
    call(
        compiler.path, *flags, *gencode(("8.0",)), "-Xcompiler=-fPIC", "-c", source_file,
        "-o", cuda_object,
    )  # fmt: skip
    (tmp_path / "probe.cpp").write_text(PROBE)
    include = nvcc.toolkit_root(compiler) / "include"
    call(
        *cxx.command, *flags, "-I", include, "-fPIC", "-shared", tmp_path / "probe.cpp",
        cuda_object, cudart, "-o", library,
    )  # fmt: skip
    ctypes.CDLL(str(cudart))
    ctypes.CDLL(str(library), mode=os.RTLD_NOW)  # every symbol resolves

    done = subprocess.run(
        [sys.executable, "-c", CALL, str(cudart), str(library)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("launch of clip failed: ")
    assert "[cudaError" in done.stdout
    assert "grid (1, 1), block 256, shared memory 0 bytes" in done.stdout
