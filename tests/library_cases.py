"""What the tests of rnnfast.library share: a small source, and compilers that fail."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rnnfast import _ext, library
from rnnfast._build import host
from rnnfast.library import LibraryError, compiler

ROOT = Path(__file__).resolve().parents[1]
GXX = host.find_compiler(names=compiler.NAMES)[0]
needs_compiler = pytest.mark.skipif(
    GXX is None or _ext.why_no_cpu() is not None, reason="no compiler, or no extension"
)

SOURCE = """
#include "cpu/vec.h"
#define RNNFAST_EXPORT extern "C" __attribute__((visibility("default")))
using V = rnnfast::cpu::RNNFAST_ISA::Vec<float>;
RNNFAST_EXPORT void add(const float* a, const float* b, float* c, long n) {
  for (long i = 0; i < n; i += V::kLanes)
    (V::load(a + i, n - i) + V::load(b + i, n - i)).store(c + i, n - i);
}
RNNFAST_EXPORT int lanes() { return V::kLanes; }
"""
NAME = "work-cells.py:adds"
SETTINGS = "torch._inductor.config"


@contextmanager
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the entries, not there yet; the library as a new process finds it."""
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path / "cache"))
    for name in ("RNNFAST_COMPILE", "RNNFAST_COMPILE_SECONDS"):
        monkeypatch.delenv(name, raising=False)
    assert GXX is not None
    use(monkeypatch, " ".join(GXX.command))
    yield tmp_path / "cache" / "cells"
    library.forget()


def use(monkeypatch: pytest.MonkeyPatch, command: object) -> None:
    """The compiler, as if nobody had imported torch's settings, which other tests do."""
    monkeypatch.setenv("CXX", str(command))
    monkeypatch.delitem(sys.modules, SETTINGS, raising=False)
    library.forget()


def script(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> Path:
    """A compiler that writes a line into ``folder/calls`` each time and then does ``body``, where
    $REAL is the real one and $out the file to be made. Returns the file of calls."""
    assert GXX is not None
    path, calls = folder / "compiler", folder / "calls"
    real = " ".join(GXX.command)
    path.write_text(
        f'#!/bin/sh\nREAL="{real}"\n[ "$1" = --version ] && echo fake 1.0 && exit\n'
        f"echo called >> {calls}\n"
        f'for word; do [ "$last" = -o ] && out=$word; last=$word; done\n{body}\n'
    )
    path.chmod(0o755)
    calls.write_text("")
    use(monkeypatch, path)
    return calls


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def adds(lib: ctypes.CDLL) -> bool:
    a, b, c = torch.randn(37), torch.randn(37), torch.full((37,), torch.nan)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (a, b, c)]
    lib.add(*pointers, ctypes.c_long(37))
    return torch.equal(c, a + b)


def left(cache: Path) -> list[str]:
    """What is in the folder beside entries."""
    return [p.name for p in cache.iterdir() if p.suffix != ".so"]


def one(cache: Path) -> Path:
    (entry,) = cache.glob("*.so")
    return entry


def fails(source: str = SOURCE) -> str:
    with pytest.raises(LibraryError) as caught:
        library.load(source, name=NAME)
    return str(caught.value)
