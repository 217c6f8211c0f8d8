"""What a check leaves in its folder: the page, the rates, all files as one archive, and a log."""

from __future__ import annotations

import contextlib
import io
import time
import traceback
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import table
from . import summary
from .children import read
from .stages import CUT, FAILED, OK, Context, Result

MOST = 15 << 20  # bytes of a file
PAGE, LOG, RATES, BUILD = "summary.md", "log.txt", "rates.json", "build.zip"
EARLIER = "earlier-"  # of the last check that had results
NO_RESULTS = ("ready", "build")  # stages that find out nothing
BEGAN = time.monotonic()  # as the process did
TAIL = 20  # lines of an output that the log repeats where a stage went wrong


class Results:
    """Everything is written after every stage, whole and under another name first, so that there
    is always all of the stages before."""

    def __init__(self, folder: Path, context: Context) -> None:
        self.folder, self.context = folder, context
        self.facts: Mapping[str, Any] = {}
        self.page = ""
        self._lines: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._kept = [folder / name for name in (PAGE, LOG, self.archive)]
        self._set_aside()
        for old in (PAGE, LOG, RATES, BUILD, self.archive):
            (folder / old).unlink(missing_ok=True)
            for half in folder.glob(f".{old}.*"):  # of one that was killed
                half.unlink()

    def _set_aside(self) -> None:
        """What the check before this one left, unless that had no results and there is still what
        it had set aside itself."""
        if not any(map(Path.exists, map(_earlier, self._kept))):
            for path in filter(Path.exists, self._kept):
                path.replace(_earlier(path))

    @property
    def archive(self) -> str:
        return "dry-run.zip" if self.context.dry_run else "results.zip"

    def say(self, line: str, quietly: bool = False) -> None:
        """Into the log, with the time; and to standard output."""
        self._lines.append(f"{time.monotonic() - BEGAN:6.1f} s  {line}")
        if not quietly:
            with contextlib.suppress(OSError):  # whoever read it may be gone
                print(line, flush=True)

    def write(self, results: Sequence[Result]) -> None:
        """A part that can't be made or written costs only itself."""
        whole = True
        for part in (self._write_page, self._write_log, self._write_rates, self._write_archive):
            try:
                part(results)
            except Exception:
                self.say(traceback.format_exc())
                whole = False
        if whole and any(r.outcome.state == OK and r.name not in NO_RESULTS for r in results):
            for path in map(_earlier, self._kept):
                path.unlink(missing_ok=True)

    def _write_page(self, results: Sequence[Result]) -> None:
        self.page = summary.page(self.context, results, self.facts)
        table.write_text(self.folder / PAGE, self.page)

    def _write_log(self, results: Sequence[Result]) -> None:
        self._say_what_went_wrong(results)
        table.write_text(self.folder / LOG, "\n".join(self._lines)[-MOST:] + "\n")

    def _write_rates(self, _: Sequence[Result]) -> None:
        rates = self.context.folder / RATES
        if rates.is_file():
            table.write_bytes(self.folder / RATES, rates.read_bytes())

    def _write_archive(self, _: Sequence[Result]) -> None:
        table.write_bytes(self.folder / self.archive, pack(self.context.folder))

    def _say_what_went_wrong(self, results: Sequence[Result]) -> None:
        last = results[-1] if results else None
        if last is None or last.outcome.state not in (FAILED, CUT):
            return
        since = time.time() - last.seconds - 1
        for log in sorted(self.context.folder.rglob("*.txt")):
            if log.stat().st_mtime >= since:
                self.say(f"{last.name}: {log.relative_to(self.context.folder)} ends:", quietly=True)
                self._lines += [f"    {line}" for line in read(log).splitlines()[-TAIL:]]


def _earlier(path: Path) -> Path:
    return path.with_name(EARLIER + path.name)


def pack(folder: Path) -> bytes:
    """The files as an archive; the largest are left out where it would be too large."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    while True:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.writestr(str(path.relative_to(folder)), read(path))
        if packed.tell() <= MOST or not files:
            return packed.getvalue()
        files.pop()
