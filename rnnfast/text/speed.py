"""How fast runs were that took turns, and how busy the machine was meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .history import History
from .run import Run

BUSY = 0.1  # share of the processors that others may take before it is said
UNSTEADY = 0.25  # how far the quartiles of a ratio may lie apart before it is said


@dataclass(frozen=True)
class Quartiles:
    """The median of some values, and the middle half of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def tokens_per_second(history: History) -> list[float]:
    """Of each epoch; the whole step counts."""
    return [n / s for n, s in zip(history.tokens, history.seconds, strict=True)]


def ratios(run: Run[Any], reference: Run[Any]) -> list[float]:
    """Speed of each epoch over that of the epoch of ``reference`` that ran beside it."""
    pair = (tokens_per_second(r.history) for r in (run, reference))
    return [ours / theirs for ours, theirs in zip(*pair, strict=False)]


HEADER = ("tokens/s", "quartiles", "ratio", "quartiles")


def columns(groups: Sequence[Run[Any]], references: Sequence[Run[Any]]) -> list[str]:
    """The cells under ``HEADER``, of runs of one implementation and those that they ran beside."""
    speed = Quartiles.of([v for run in groups for v in tokens_per_second(run.history)])
    pairs = zip(groups, references, strict=True)
    ratio = Quartiles.of([v for run, other in pairs for v in ratios(run, other)])
    return [
        f"{speed.median:,.0f}",
        f"{speed.low:,.0f} – {speed.high:,.0f}",
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f} – {ratio.high:.2f}",
    ]


class Watch:
    """Tells what share of the processors other processes took since it was made."""

    def __init__(self) -> None:
        self._start = _reading()

    def others(self) -> float | None:
        """0 to 1; None where the system does not tell."""
        now = _reading()
        if self._start is None or now is None or now.wall <= self._start.wall:
            return None
        busy, own = now.busy - self._start.busy, now.own - self._start.own
        every = (now.wall - self._start.wall) * now.processors
        return min(max((busy - own) / every, 0.0), 1.0)


@dataclass(frozen=True)
class _Reading:
    """Seconds: of the processors in use and of this process, and of the clock."""

    busy: float
    own: float
    wall: float
    processors: int


def _reading(stat: Path = Path("/proc/stat")) -> _Reading | None:
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return None
    ticks = [int(field) for field in lines[0].split()[1:9]]
    idle = ticks[3] + ticks[4]  # of which the fifth is waiting for a disk
    used = os.times()
    own = used.user + used.system + used.children_user + used.children_system
    processors = sum(line.startswith("cpu") for line in lines) - 1
    busy = (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
    return _Reading(busy, own, time.monotonic(), processors)


def notes(runs: Sequence[Run[Any]], others: float | None) -> list[str]:
    """What a reader of the table has to know about the machine, in sentences; often nothing."""
    found = []
    if others is not None and others > BUSY:
        found.append(
            f"The machine was loaded: other processes took {others:.0%} of its processors. Speeds "
            "are lower than on an idle one, and a ratio is less certain."
        )
    for run in runs[:-1]:
        ratio = Quartiles.of(ratios(run, runs[-1]))
        if ratio.high - ratio.low > UNSTEADY * ratio.median:
            found.append(
                "The machine was unsteady: the middle half of the ratios lies between "
                f"{ratio.low:.2f} and {ratio.high:.2f}."
            )
            break
    return found
