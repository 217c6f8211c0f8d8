"""Small facts about this machine that are kept between processes: JSON files in the cache folder.

A file is replaced in one step, so that another process reads the old one or the new one, and
updates of several processes wait for one another, so that none is lost. A file that is cut off, or
somebody else's, counts as empty.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        made = json.dumps(change(read(path)), indent=1, sort_keys=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(made)
            os.replace(fresh, path)
        except BaseException:
            os.unlink(fresh)
            raise


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While no other process is in this block; its end, however it comes, lets the next one in."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
