"""Cells of one's own in CUDA C++ on the executor: their text compiled for it and linked to it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rnnfast._build import host
from rnnfast.steps import run_cuda
from rnnfast.steps.run import Arguments
from rnnfast.steps.run_cuda import CudaKernel, Gpus
from rnnfast.steps.source import Source

from .build import EXECUTOR, FOLDER, INCLUDES, ROOT, library

FLAGS = ["-O1", "-g1", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-DRNNFAST_SIMT"]


class ExecutedKernel(CudaKernel):
    def run(self, name: str, arguments: Arguments, device: torch.device) -> None:
        self.start(name, arguments, device, None)


class Executor(Gpus):
    """``edit``: (old, new) of a header, to see what a fault does."""

    def __init__(self, edit: tuple[str, str, str] | None = None) -> None:
        self.executor = library(EXECUTOR)
        self.includes = INCLUDES if edit is None else [f"-I{_edited(*edit)}", *INCLUDES]

    def load(self, made: Source, name: str, index: int) -> CudaKernel | str:
        return ExecutedKernel(made, ctypes.CDLL(str(self._compiled(made.text))), "executed")

    def _compiled(self, text: str) -> Path:
        headers = [
            *ROOT.glob("csrc/c*/**/*.h"),
            *ROOT.glob("csrc/scan/*.h"),
            *ROOT.glob("tests/simt/*.h"),
        ]
        parts = [text, " ".join(self.includes), *(p.read_text() for p in sorted(headers))]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
        folder = FOLDER / "own"
        folder.mkdir(exist_ok=True)
        made = folder / f"{digest}.so"
        if made.is_file():
            return made
        compiler, why = host.find_compiler(os.environ)
        assert compiler is not None, why
        source, part = folder / f"{digest}.cu", folder / f"{digest}-{os.getpid()}.so"
        source.write_text(text)
        command = [*compiler.command, *FLAGS, *self.includes, "-x", "c++", str(source)]
        command += ["-x", "none", str(self.executor), f"-Wl,-rpath,{FOLDER}", "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        part.rename(made)
        return made


def _edited(header: str, old: str, new: str) -> Path:
    """A folder with a copy of a header in which ``old``, which is there once, is ``new``."""
    text = (ROOT / "csrc" / header).read_text()
    assert text.count(old) == 1, (header, old, text.count(old))
    digest = hashlib.sha256(f"{header}{old}{new}".encode()).hexdigest()[:12]
    path = FOLDER / "mutants" / digest / header
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(old, new))
    return FOLDER / "mutants" / digest


@contextmanager
def executing(edit: tuple[str, str, str] | None = None) -> Iterator[ctypes.CDLL]:
    """Within the block, cells of one's own of the CUDA backend on CPU tensors are executed."""
    executor = Executor(edit)
    settings = ctypes.CDLL(str(executor.executor))
    settings.simt_begin.argtypes = [ctypes.c_int64]
    settings.simt_launches.restype = ctypes.c_char_p
    seed = int(os.environ.get("RNNFAST_SIMT_SEED", "") or random.SystemRandom().randrange(2**31))
    print(f"to repeat: RNNFAST_SIMT_SEED={seed}")
    settings.simt_begin(seed)
    run_cuda.KINDS["cpu"] = executor
    run_cuda.forget()
    try:
        yield settings
    finally:
        del run_cuda.KINDS["cpu"]
        run_cuda.forget()
