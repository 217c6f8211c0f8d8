"""The Triton clip kernels: run in the interpreter, and compiled for real GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).resolve().parents[2]


def test_kernels_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.clip.triton_scenes"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 7


TABLE = {"table": "*i64", "entries": "i64", "chunks": "i64"}
NORMS = {**TABLE, "norms": "*fp64"}
KERNELS = {
    "partial_norms": (NORMS, {"KIND": 2}),
    "norm_and_scale": (
        {**NORMS, "programs": "i64", "wide": "*fp64", "shown": "*bf16"},
        {"KIND": 3, "BLOCK": 1024, "SCALE": True},
    ),
    "scale_by_norm": ({**TABLE, "norm": "*fp64"}, {}),
    "clamp_all": (TABLE, {}),
}


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile(name: str, capability: int) -> None:
    """For a GPU that need not be there: to machine code, without local memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rnnfast.triton import clip

    signature, constants = KERNELS[name]
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(getattr(clip, name), signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"]
