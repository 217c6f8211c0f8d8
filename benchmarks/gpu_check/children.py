"""The commands of a check: each in a session of its own, with a limit, and ended for certain."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

GRACE = 5.0  # seconds for what was killed to be gone; what the driver holds is left behind
POLL = 0.05  # seconds
MOST_READ = 4 << 20  # bytes of an output: its two ends
MARK = "GPU_CHECK_CHILD"  # in the environment of all that a command starts
_numbers = itertools.count()


@dataclass(frozen=True)
class Command:
    """log: where its output goes, as it comes."""

    words: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """code: the exit status, or None where the time was up. left: processes that can't be ended."""

    code: int | None
    text: str
    left: int = 0

    @property
    def last_line(self) -> str:
        return last_line(self.text)


def last_line(text: str) -> str:
    """Of what a command printed, below the command itself."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines and not lines[-1].startswith("$ ") else ""


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    until: float


def run(command: Command, seconds: float) -> Finished:
    """Runs it for so long at most, and ends all that it has started."""
    return run_all([command], seconds)[0]


def run_all(commands: Sequence[Command], seconds: float, at_once: int = 1) -> list[Finished]:
    """So many at once; each may take its turn's part of the time, so that one that hangs leaves the
    others theirs."""
    turns = -(-len(commands) // at_once)
    until = time.monotonic() + seconds
    waiting = list(enumerate(commands))
    running: dict[int, _Child] = {}
    done = dict.fromkeys(range(len(commands)), Finished(None, ""))
    try:
        while running or (waiting and time.monotonic() < until):
            while waiting and len(running) < at_once:
                place, command = waiting.pop(0)
                limit = min(time.monotonic() + seconds / turns, until)
                running[place] = _start(command, limit)
            for place, child in list(running.items()):
                code = child.process.poll()
                if code is not None or time.monotonic() >= child.until:
                    done[place] = _end(running.pop(place), code)
            time.sleep(POLL)
    finally:
        for child in running.values():
            _end(child, None)
    return list(done.values())


def _start(command: Command, until: float) -> _Child:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}-{next(_numbers)}"
    with command.log.open("w") as file:
        file.write(f"$ {' '.join(command.words)}\n")
        file.flush()
        process = subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **command.environment, MARK: mark},
            start_new_session=True,
        )
    return _Child(process, mark, command.log, until)


def _end(child: _Child, code: int | None) -> Finished:
    """Also where the command has ended by itself: what it started may live on."""
    until = time.monotonic() + GRACE
    while (alive := _family(child)) and time.monotonic() < until:
        _kill(alive)
        child.process.poll()
        time.sleep(0.02)
    return Finished(code, read(child.log), len(alive))


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _family(child: _Child) -> list[int]:
    """The processes of its session, ninja's groups among them, and those with its mark."""
    session = child.process.pid
    return [p.pid for p in _processes() if p.session == session or p.mark() == child.mark]


def end_orphans() -> None:
    """Kills what is left of a check that was killed itself: it would compute on beside this one."""
    living = {p.pid for p in _processes()}
    marks = [(p.pid, p.mark().partition("-")[0]) for p in _processes()]
    _kill([pid for pid, parent in marks if parent and int(parent) not in living])


class _Process(NamedTuple):
    pid: int
    session: int

    def mark(self) -> str:
        """Empty where it has none, has ended, or is another user's."""
        start = f"{MARK}=".encode()
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(start):
                    return entry.removeprefix(start).decode()
        return ""


def _processes() -> Iterator[_Process]:
    """Those that run."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended
            continue
        # after the name in brackets, which may hold anything: state, parent, group, session
        state, _, _, session = text.rpartition(")")[2].split()[:4]
        if state not in "ZX":
            yield _Process(int(folder.name), int(session))


def read(log: Path) -> str:
    """The text, without its middle where it is very long."""
    size = log.stat().st_size
    with log.open("rb") as file:
        if size <= MOST_READ:
            return file.read().decode(errors="replace")
        head = file.read(MOST_READ // 2)
        file.seek(-MOST_READ // 2, os.SEEK_END)
        return (head + b"\n[...]\n" + file.read()).decode(errors="replace")
