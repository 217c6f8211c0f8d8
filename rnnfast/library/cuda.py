"""CUDA C++: nvcc, and what it is called with."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

import torch

from .._build import nvcc, torchinfo

FLAGS = ("-O3", "-DNDEBUG", "-std=c++17", "-shared", "-Xcompiler=-fPIC,-fvisibility=hidden")


@functools.lru_cache(maxsize=8)
def command(*_env: str | None) -> tuple[tuple[str, ...] | None, str]:
    """nvcc, or None and why there is none; the arguments are what the answer depends on."""
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is a build without CUDA"
    search = nvcc.find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        return None, f"no nvcc that fits torch ({search.why_not()})"
    return (str(search.nvcc.path),), ""


def flags(target: str) -> tuple[str, ...]:
    """``target``: sm_90, say."""
    return (*FLAGS, f"-arch={target}", *(["-cudart=none"] if runtime() else []))


def libraries() -> tuple[str, ...]:
    """The CUDA runtime that torch has in the process; none: nvcc links its own."""
    own = runtime()
    return () if own is None else (f"-L{own.parent}", f"-l:{own.name}")


@functools.cache
def runtime() -> Path | None:
    found = torchinfo.find_torch()
    return None if found is None else found.cudart_library()


@functools.lru_cache(maxsize=8)
def identity(*_env: str | None) -> str:
    """A digest of the files that nvcc may be. None of them is run: that takes longer than to load
    what is kept."""
    made_of: list[object] = [torch.version.cuda]
    for path in nvcc.places():
        try:
            facts = path.stat()
        except OSError:  # a link to nothing, say
            continue
        made_of.append([os.path.realpath(path), facts.st_mtime_ns, facts.st_size])
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def forget() -> None:
    for remembered in (command, runtime, identity):
        remembered.cache_clear()
