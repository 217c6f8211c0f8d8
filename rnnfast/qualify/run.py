"""All cases by all strategies, in processes with limits. One that hangs or crashes costs itself and
the cases of the same cell and math that were to come: for these there is no more to be won.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..backends.qualified import ABSENT, RIGHT, Trial
from .spread import Case, Way

LIMIT = 60.0  # seconds of a case
START = 180.0  # of a process's start
GRACE = 5.0  # for one that was killed to be gone
MOST_LOST = 6  # processes of a way: then the rest of its cases is left out
CHILD = (sys.executable, "-m", "rnnfast.qualify.child")

Report = Callable[[Trial], None]


def qualify(
    ways: Sequence[Way],
    cases: Sequence[Case],
    device: str,
    seconds: float,
    report: Report = lambda trial: None,
    limit: float = LIMIT,
    child: Sequence[str] = CHILD,
) -> list[Trial]:
    """Tries each way with each case; ``report`` is told of each trial as it ends.

    ``seconds``: of a timing. ``limit``: of a case, then its process is killed.
    """
    trials: list[Trial] = []

    def keep(way: Way, case: Case, found: dict[str, Any]) -> None:
        times = (found.get("us"), found.get("torch_us"))
        trials.append(Trial(way.backend, way.strategy, *case, found["state"], *times))
        report(trials[-1])

    for way in ways:
        left, lost = list(cases), 0
        while left and lost < MOST_LOST:
            done, died = _one_process(way, left, device, seconds, limit, child)
            for case, found in zip(left, done, strict=False):
                keep(way, case, found)
            last, left = left[len(done) - 1], left[len(done) :]
            lost += int(died)
            if died and done[-1]["state"] not in (RIGHT, ABSENT):
                left = [case for case in left if (case.cell, case.math) != (last.cell, last.math)]
        for case in left:  # or what was never tried would count as right
            keep(way, case, {"state": f"left out: {lost} processes were lost before"})
    return trials


def _one_process(
    way: Way,
    cases: Sequence[Case],
    device: str,
    seconds: float,
    limit: float,
    child: Sequence[str],
) -> tuple[list[dict[str, Any]], bool]:
    """What it found of the first cases, one at least, and whether it was lost then: at the last of
    these, or behind it."""
    process = subprocess.Popen(
        child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps([device, seconds, way, cases]))
        process.stdin.close()
    done: list[dict[str, Any]] = []
    begun, under_way = False, True  # a case is, or the start
    try:
        while len(done) < len(cases):
            line = lines.get(timeout=limit if begun else START)
            begun = True
            if line is None:
                if under_way:
                    done.append({"state": _ended(process)})
                return done, True
            told = json.loads(line)
            under_way = "begins" in told
            if not under_way:
                done.append(told)
    except queue.Empty:
        told_of = f"no end within {limit:g} s" if begun else f"no start within {START:g} s"
        return [*done, {"state": told_of}], True
    finally:
        _kill(process)
    return done, False


def _ended(process: subprocess.Popen[str]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    return f"its process ended with status {process.returncode}"


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _kill(process: subprocess.Popen[str]) -> None:
    """The process and what it started; what the driver holds is left behind after GRACE."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
