"""Generated C++ or CUDA C++ as a library: compiled once on this machine, kept, checked, loaded.

``load(source, name=…)`` takes a whole translation unit, of which ctypes sees what is
``extern "C" __attribute__((visibility("default")))``. It is kept by what it was made of
(entries.py), in the folder ``cells`` of the cache. What happens when something fails is on
docs/compiled-cells.md.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import compiler, entries
from .compiler import HOST, LibraryError, include_folder
from .entries import Entry, folder

__all__ = [
    "HOST",
    "Entry",
    "LibraryError",
    "clear",
    "cuda_target",
    "folder",
    "forget",
    "include_folder",
    "listed",
    "load",
    "status",
    "why_not",
]

Made = tuple[str, str]  # of: source, target
_loaded: dict[Made, tuple[ctypes.CDLL, Path]] = {}
_failed: dict[Made, str] = {}  # why, where it would be so again
_locks: dict[Made, threading.Lock] = {}  # one each: who has one waits for no other's compiler

# In a forked process nobody would let go of those that other threads had.
os.register_at_fork(after_in_child=_locks.clear)


def cuda_target(major: int, minor: int) -> str:
    """GPUs of this compute capability, for ``load``."""
    return f"sm_{major}{minor}"


def load(source: str, *, name: str, target: str = HOST) -> ctypes.CDLL:
    """The library made of ``source``, a C++17 translation unit, for the instruction set in use; for
    another ``target`` CUDA C++, compiled by nvcc.

    Headers are found as in csrc (``#include "cpu/panel.h"``); on the host, RNNFAST_ISA and
    RNNFAST_VECTOR_BYTES are defined. ``name`` is for the file and for messages.

    Raises:
        LibraryError: it can't be compiled, kept or loaded here; a sentence, and the compiler's last
            lines.
    """
    made = source, target
    found = _loaded.get(made)
    if found is not None:
        return found[0]
    with _locks.setdefault(made, threading.Lock()):
        if made not in _loaded:
            if made in _failed:
                raise LibraryError(_failed[made])
            try:
                _loaded[made] = _load(source, target, name)
            except LibraryError as error:
                if error.lasting:
                    _failed[made] = str(error)
                raise
        return _loaded[made][0]


def why_not(source: str | None = None, target: str = HOST) -> str | None:
    """Why nothing can be compiled here, None where it can be; also where ``source`` is kept or
    loaded already, which needs no compiler."""
    if source is not None:
        if (source, target) in _loaded or _kept(source, target) is not None:
            return None
    asked = ("RNNFAST_COMPILE", "RNNFAST_CACHE", "XDG_CACHE_HOME", "HOME", "PATH", "CUDA_HOME")
    return compiler.why_not(target, compiler.asked(), *map(os.environ.get, asked))


def status(source: str, target: str = HOST) -> str:
    """Of ``explain``: "cached at …", "failed: …" or "not compiled yet"."""
    made = source, target
    if made in _failed:
        return f"failed: {_failed[made].splitlines()[0]}"
    kept = _loaded[made][1] if made in _loaded else _kept(source, target)
    return "not compiled yet" if kept is None else f"cached at {kept}"


def listed() -> list[Entry]:
    """What is kept."""
    return entries.listed(folder())


def clear() -> list[Entry]:
    """Deletes what is kept, and returns it."""
    return entries.clear(folder())


def forget() -> None:
    """As a new process begins; for tests."""
    _loaded.clear()
    _failed.clear()
    compiler.forget()


def _kept(source: str, target: str) -> Path | None:
    """An intact entry for ``source`` that may be loaded."""
    if compiler.why_not_even_load(target) is not None:
        return None
    found = _usable(entries.folder(), source, target)
    return next((path for path in found if entries.is_intact(path)), None)


def _usable(folder: Path, source: str, target: str) -> list[Path]:
    """Those of this compiler; where there is none of it and nothing can be compiled, of any."""
    key = compiler.key(source, target)
    found = entries.find(folder, key)
    if not found and why_not(target=target):
        found = entries.find(folder, key._replace(compiler="*"))
    return found


def _load(source: str, target: str, name: str) -> tuple[ctypes.CDLL, Path]:
    problem = compiler.why_not_even_load(target)
    if problem is not None:
        raise LibraryError(f"cell {name!r} can't be loaded or compiled here: {problem}")
    folder, key = entries.folder(), compiler.key(source, target)
    found = _opened(folder, source, target)
    if found is not None:
        return found
    problem = why_not(target=target)
    if problem is not None:
        raise LibraryError(f"cell {name!r} can't be compiled here: {problem}")
    path = entries.place(folder, key, name)
    try:
        for made in (folder.parent, folder):
            made.mkdir(mode=0o755, parents=True, exist_ok=True)
        entries.sweep(folder, older=3600 + compiler.limit())
        with _alone(path.with_suffix(".lock"), path):
            found = _opened(folder, source, target)  # by another process, meanwhile
            if found is None:
                found = compiler.build(source, target, name, folder, path), path
    except OSError as error:
        raise LibraryError(f"cell {name!r} can't be kept in {folder}: {error}") from error
    return found


def _opened(folder: Path, source: str, target: str) -> tuple[ctypes.CDLL, Path] | None:
    """Of an intact entry; what is broken is deleted, what is another environment's is not."""
    own = f"-{compiler.key(source, target).compiler}.so"
    for path in _usable(folder, source, target):
        try:
            if entries.is_intact(path):
                return ctypes.CDLL(str(path)), path
        except OSError:  # of another C library, say
            if not path.name.endswith(own):
                continue
        entries.delete(path)
    return None


@contextmanager
def _alone(path: Path, made: Path) -> Iterator[None]:
    """While no other process compiles the same, or after a wait that is long enough for one.

    Two that compile at once cost time only, since what they make is renamed into its place. The
    system frees the lock of a process that is killed.
    """
    end = time.monotonic() + compiler.limit() + 10
    with entries.Lock(path) as lock:
        while not (lock.taken() or made.exists() or time.monotonic() > end):
            time.sleep(0.05)
        yield
