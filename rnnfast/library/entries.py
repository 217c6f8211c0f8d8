"""The cache: what is kept, where, whether it is whole, and whether it may be trusted.

An entry is one file, ``NAME-CODE-COMPILER.so``: the library, and after it a mark and the SHA-256 of
all before. The loader does not see what follows a library; a file that was cut off would crash it,
so the sum is looked at first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from .. import store

FORMAT = 1
WORK = "+"  # what the folder of a compilation begins with, and no entry's name
_MARK = f"rnnfast-cell-{FORMAT:04}:".encode()
_TAIL = len(_MARK) + 32


class Key(NamedTuple):
    """What an entry was made of, as digests: ``code`` of source, headers, flags and versions."""

    code: str
    compiler: str


class Entry(NamedTuple):
    path: Path
    name: str
    bytes: int
    seconds: float  # since it was made


def folder() -> Path:
    return store.folder() / "cells"


def refused(folder: Path) -> str | None:
    """Why code from this folder must not be run: others could have put it there."""
    for path in (folder.parent, folder):
        try:
            facts = path.stat()
        except OSError:
            continue  # it will be ours when we make it, or can't be made
        if not stat.S_ISDIR(facts.st_mode):
            return f"{path} is not a folder"
        if facts.st_uid not in (0, os.geteuid()):
            return f"the cache folder {path} belongs to another user (uid {facts.st_uid})"
        free = facts.st_mode & 0o002 and not facts.st_mode & stat.S_ISVTX
        if free or (path == folder and facts.st_mode & 0o022):
            mode = stat.S_IMODE(facts.st_mode)
            return f"others can write into the cache folder {path} (mode {mode:o}; chmod go-w)"
    return None


def why_not_writable(folder: Path) -> str | None:
    """Of the folder, or of the one in which it would be made."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"the cache folder {folder} can't be written"


def place(folder: Path, key: Key, name: str) -> Path:
    shown = re.sub(r"[^\w.]+", "_", name, flags=re.ASCII)[-60:]
    return folder / f"{shown}-{key.code}-{key.compiler}.so"


def find(folder: Path, key: Key) -> list[Path]:
    """The entries of the key, intact or not; ``*`` stands for any compiler."""
    return sorted(folder.glob(f"*-{key.code}-{key.compiler}.so"))


def is_intact(path: Path) -> bool:
    """Whether it is what ``seal`` made, and nobody but its owner can write to it."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            content = memoryview(file.read())
    except OSError:
        return False
    ours = facts.st_uid in (0, os.geteuid()) and not facts.st_mode & 0o022
    body, tail = content[:-_TAIL], content[-_TAIL:]
    return ours and len(body) > 0 and tail == _MARK + hashlib.sha256(body).digest()


def seal(path: Path) -> None:
    """Makes an entry of a library that was just linked.

    Raises ValueError if it is not whole.
    """
    content = path.read_bytes()
    if not _is_whole(content):
        raise ValueError("the compiler ended well and left half a library")
    with path.open("ab") as file:
        file.write(_MARK + hashlib.sha256(content).digest())
    path.chmod(0o755)


def _is_whole(library: bytes) -> bool:
    """Of a 64-bit ELF file: that it reaches to the end of its table of sections, its last part."""
    if len(library) < 64 or library[:5] != b"\x7fELF\x02":
        return False
    begin, size, count = (
        *struct.unpack_from("Q", library, 40),
        *struct.unpack_from("HH", library, 58),
    )
    return 0 < begin + size * count <= len(library)


def delete(path: Path) -> None:
    """Where that is allowed."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass


def listed(folder: Path) -> list[Entry]:
    found = []
    for path in sorted(folder.glob("*-*-*.so")):
        try:
            facts = path.stat()
        except OSError:
            continue  # deleted just now
        name = path.name.rsplit("-", 2)[0]
        found.append(Entry(path, name, facts.st_size, time.time() - facts.st_mtime))
    return found


def clear(folder: Path) -> list[Entry]:
    """Deletes all entries and returns them; what is loaded stays loaded.

    Raises OSError where one can't be deleted.
    """
    found = listed(folder)
    for entry in found:
        entry.path.unlink(missing_ok=True)
    sweep(folder, older=3600)
    return found


def sweep(folder: Path, older: float) -> None:
    """Deletes what compilations left that were killed more than so many seconds ago."""
    for path in [*folder.glob(f"{WORK}*"), *folder.glob("*.lock")]:
        try:
            if path.stat().st_mtime < time.time() - older:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue


class Lock:
    """A lock between processes that compile the same; the file is deleted by the one that had it.

    Who waits on a deleted file and who made a new one may both go on: that costs time only.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._had = path, False

    def __enter__(self) -> Lock:
        self._file = self._path.open("w")
        return self

    def taken(self) -> bool:
        """Tries to take it. A file system without locks counts as taken."""
        try:
            # Not flock: a process forked meanwhile would go on holding that.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            pass
        self._had = True
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._had:
            delete(self._path)
        self._file.close()
