"""Which of a few tilings is fastest on this device: measured once, remembered in a file.

A key holds cell, direction, H, P, I, math, device and a bucket of batch sizes, so that a new batch
size is not measured anew. ``RNNFAST_TRITON_TUNE=0`` measures nothing; what the file has still
counts.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import store
from ..problem import Problem
from .plan import Device, Tiling, math_of

SWITCH = "RNNFAST_TRITON_TUNE"
LARGEST_BUCKET = 2048
_lock = threading.Lock()
_unsaved: dict[str, Tiling] = {}  # where the folder can't be written


def cache_file() -> Path:
    """In the cache folder."""
    return store.folder() / "triton-plans.json"


def bucket(B: int) -> int:
    """Batch sizes up to the next power of two count as one, and all from 2048 on."""
    return min(LARGEST_BUCKET, 1 << max(B - 1, 0).bit_length())


def key_of(direction: str, problem: Problem, device: Device) -> str:
    """One line of the file."""
    p = problem
    masks = "masked" if p.has_lengths or p.has_resets else "dense"
    sizes = f"H{p.H} P{p.P} I{p.I} B{bucket(p.B)}"
    return (
        f"{device.name} | {direction} {p.cell} {math_of(p.dtype)} {sizes} {masks} | "
        f"triton {_version()}"
    )


def best(
    key: str, tilings: Sequence[Tiling], time_of: Callable[[Tiling], float] | None = None
) -> Tiling:
    """The tiling that the file has under ``key``, else the fastest, else the first.

    Args:
        tilings: what comes into question; a remembered one that is not among them does not count.
        time_of: runs one and returns its time; None, or ``RNNFAST_TRITON_TUNE=0``: not measured.
    """
    if len(tilings) == 1:
        return tilings[0]
    with _lock:
        remembered = _unsaved.get(key) or _read(cache_file()).get(key)
        if remembered is not None and remembered in tilings:
            return remembered
        if time_of is None or os.environ.get(SWITCH, "1") == "0":
            return tilings[0]
        fastest = min(tilings, key=time_of)
        try:
            store.update(cache_file(), lambda lines: {**lines, key: fastest})
        except OSError as error:
            _unsaved[key] = fastest
            message = f"{cache_file()} can't be written ({error}): measured for this process only"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    return fastest


@functools.lru_cache(maxsize=8)
def _read_at(path: Path, modified: int, size: int) -> dict[str, Tiling]:
    try:
        return {key: Tiling(*values) for key, values in store.read(path).items()}
    except (TypeError, AttributeError):  # somebody else's: measured anew
        return {}


def _read(path: Path) -> dict[str, Tiling]:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return {}
    return _read_at(path, facts.st_mtime_ns, facts.st_size)


@functools.cache
def _version() -> str:
    for name in ("triton", "pytorch-triton", "triton-rocm"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
