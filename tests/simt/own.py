"""Cells of one's own in CUDA C++ on the executor: their text compiled for it and linked to it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from rnnfast._build import host
from rnnfast.backends import registry
from rnnfast.backends.cuda import Cuda
from rnnfast.steps import resident, run_cuda
from rnnfast.steps.resident import Budget
from rnnfast.steps.run_cuda import Gpus

from .build import EXECUTOR, FOLDER, INCLUDES, ROOT, SANITIZE, SANITIZED, library

Edit = tuple[str, str, str]  # header, old, new
WIDE: Edit = ("cuda/steps/loop.h", "kFewBlocks = 64;", "kFewBlocks = 0;")  # tiles for small sizes
FLAGS = ["-O1", "-g1", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-DRNNFAST_SIMT"]


class Executed(Cuda):
    """The backend ``cuda`` on CPU tensors, for cells of one's own."""

    name = "executed"
    device = "cpu"

    def __init__(self) -> None:
        self._missing = None

    def unusable(self) -> str | None:
        return None


class Executor(Gpus):
    """``edits``: made in the headers. ``sanitized``: with AddressSanitizer and UBSan."""

    def __init__(self, edits: Sequence[Edit], sanitized: bool) -> None:
        self.executor = library(SANITIZED if sanitized else EXECUTOR)
        self.flags = [*FLAGS, *(SANITIZE if sanitized else [])]
        self.includes = [f"-I{_edited(edits)}", *INCLUDES] if edits else INCLUDES

    def load(self, text: str, name: str, index: int) -> tuple[ctypes.CDLL, str]:
        return ctypes.CDLL(str(self._compiled(text))), "executed"

    def budget(self, index: int) -> Budget:
        return resident.budget_of("sm_90")

    @contextmanager
    def stream(self, device: torch.device) -> Iterator[None]:
        yield None

    def _compiled(self, text: str) -> Path:
        headers = [
            *ROOT.glob("csrc/c*/**/*.h"),
            *ROOT.glob("csrc/scan/*.h"),
            *ROOT.glob("tests/simt/*.h"),
        ]
        parts = [
            text,
            " ".join(self.flags + self.includes),
            *(p.read_text() for p in sorted(headers)),
        ]
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
        command = [*compiler.command, *self.flags, *self.includes, "-x", "c++", str(source)]
        command += ["-x", "none", str(self.executor), f"-Wl,-rpath,{FOLDER}", "-o", str(part)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        part.rename(made)
        return made


def _edited(edits: Sequence[Edit]) -> Path:
    """A folder with copies of headers in which each ``old``, which is there once, is ``new``."""
    folder = FOLDER / "edited" / hashlib.sha256(repr(edits).encode()).hexdigest()[:12]
    texts: dict[str, str] = {}
    for header, old, new in edits:
        text = texts.get(header) or (ROOT / "csrc" / header).read_text()
        assert text.count(old) == 1, (header, old, text.count(old))
        texts[header] = text.replace(old, new)
    for header, text in texts.items():
        path = folder / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@contextmanager
def executing(
    *edits: Edit, sanitized: bool = False, plan: str = "stepwise", precision: str = "ieee"
) -> Iterator[ctypes.CDLL]:
    """Within the block, the backend ``executed`` runs the CUDA C++ of cells of one's own.
    ``plan``: RNNFAST_PLAN. ``precision``: that of torch's RNNs in float32, "ieee" or "tf32"."""
    executor = Executor(edits, sanitized)
    settings = ctypes.CDLL(str(executor.executor))
    settings.simt_begin.argtypes = [ctypes.c_int64]
    settings.simt_launches.restype = ctypes.c_char_p
    seed = int(os.environ.get("RNNFAST_SIMT_SEED", "") or random.SystemRandom().randrange(2**31))
    print(f"to repeat: RNNFAST_SIMT_SEED={seed}")
    settings.simt_begin(seed)
    registry.BACKENDS["executed"] = Executed()
    run_cuda.KINDS["cpu"] = executor
    run_cuda.forget()
    rnn = torch.backends.cudnn.rnn
    before = rnn.fp32_precision, os.environ.get("RNNFAST_PLAN")
    rnn.fp32_precision, os.environ["RNNFAST_PLAN"] = precision, plan
    try:
        yield settings
    finally:
        rnn.fp32_precision = before[0]
        os.environ.pop("RNNFAST_PLAN")
        if before[1] is not None:
            os.environ["RNNFAST_PLAN"] = before[1]
        del registry.BACKENDS["executed"], run_cuda.KINDS["cpu"]
        run_cuda.forget()
