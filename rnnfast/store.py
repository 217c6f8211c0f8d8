"""Files that are written whole or not at all, and facts about this machine in such files.

The facts are JSON in the cache folder. Updates of several processes wait for one another, so that
none is lost; a file that is cut off, or somebody else's, counts as empty.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

Facts = dict[str, Any]


def folder() -> Path:
    """RNNFAST_CACHE, else ``rnnfast`` in the user's cache folder."""
    own, users = os.environ.get("RNNFAST_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(users or "~/.cache").expanduser() / "rnnfast"


def read(path: Path) -> Facts:
    """What the file holds; nothing where there is none, or none of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def update(path: Path, change: Callable[[Facts], Mapping[str, Any]]) -> None:
    """Replaces the file's facts by ``change(facts)``.

    Raises OSError where the folder can't be written; the file is as it was then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_name(path.name + ".lock")):
        write_text(path, json.dumps(change(read(path)), indent=1, sort_keys=True))


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` and rename it over ``path`` on success.

    Whatever goes wrong on the way (a full disk, an exception in the block, a kill), an older
    ``path`` stays as it was. Missing parent folders are created.

    Raises:
        OSError: the folder or the file cannot be written; the temporary file is removed.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, through `replacing`."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other process is in this block; its end, however it comes, lets the next one in."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
