"""The build record, `_build_info.json` beside the extension; loader and doctor read it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "_build_info.json"


def write(folder: Path, record: dict[str, Any]) -> None:
    """Put the record into `folder`, unless the same one is there already."""
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    path = folder / NAME
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def read(folder: Path) -> dict[str, Any] | None:
    """The record in `folder`; None where no build has written one."""
    path = folder / NAME
    return json.loads(path.read_text()) if path.is_file() else None


def digest(folder: Path) -> str:
    """Of all files there: tells whether a build that was carried here is one of these sources."""
    content = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        content.update(path.read_bytes())
    return content.hexdigest()
