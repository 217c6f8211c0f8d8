"""Stages one after the other before a deadline.

One that fails, or whose time is up, does not stop the next; what it has found by then is kept.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .children import Command
from .children import run as run_command

OK, FAILED, CUT, MISSING = "ok", "FAILED", "CUT OFF", "NOT RUN"


class Stopped(BaseException):
    """A signal asks the check to end: what there is, is written."""


@dataclass(frozen=True)
class Context:
    """Where everything goes, and how it is run.

    Attributes:
        folder: of what the stages write. prebuilt: nothing is compiled. dry_run: without a device.
        cores: how many processes that compute may run at once. as_if: the compute capability
        ("9.0") of a device that is not there, but is built for and asked for (as_if.py).
    """

    folder: Path
    dry_run: bool
    prebuilt: bool
    cores: int = 2
    as_if: str | None = None

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    def python(self, module: str, *words: str) -> tuple[str, ...]:
        """The words of a command: a module, by the Python that runs here."""
        return (sys.executable, "-m", module, *words)


@dataclass
class Outcome:
    """What a stage has to say: its state, a line or two, and its section of the summary."""

    state: str
    line: str
    section: str = ""


@dataclass(frozen=True)
class Stage:
    """share: of the time, relative to the others'. run: given the seconds it may take. compiles:
    the module, and its words, that makes what a dry run of it needs, before its time begins."""

    name: str
    share: float
    run: Callable[[Context, float], Outcome]
    compiles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    name: str
    outcome: Outcome
    seconds: float
    allowed: float


class Deadline:
    """When everything has to be over."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        return max(0.0, self._end - self.clock())


def run_stages(
    stages: Sequence[Stage],
    context: Context,
    deadline: Deadline,
    after: Callable[[list[Result]], None],
    before: Sequence[Result] = (),
) -> list[Result]:
    """Runs them in order; ``after`` is called with ``before`` and all results so far after each.

    A stage may take its share of the time that is left: what one leaves over goes to those that
    follow, and what one overruns is taken from them alike, as is what a dry run compiles. A signal
    ends the stage that runs, and no other is begun.
    """
    results = list(before)
    for place, stage in enumerate(stages):
        began, allowed, stopped = deadline.clock(), 0.0, False
        try:
            missing = _compile(stage, context, deadline)
            share = stage.share / sum(later.share for later in stages[place:])
            allowed = deadline.left() * share
            outcome = missing or _run(stage, context, allowed)
        except Stopped as signal:
            outcome, stopped = Outcome(CUT, f"stopped: {signal}"), True
        results.append(Result(stage.name, outcome, deadline.clock() - began, allowed))
        if _tell(after, results) or stopped:
            break
    return results


def _compile(stage: Stage, context: Context, deadline: Deadline) -> Outcome | None:
    """What a dry run needs; None where it is there."""
    if not (context.dry_run and stage.compiles):
        return None
    words = context.python(*stage.compiles)
    done = run_command(Command(words, context.folder / f"build-{stage.name}.txt"), deadline.left())
    why = "the time was up" if done.code is None else done.last_line
    return None if done.code == 0 else Outcome(FAILED, f"not compiled: {why}")


def _tell(after: Callable[[list[Result]], None], results: list[Result]) -> bool:
    """Whether a signal came while that was written down, which is then done once more."""
    try:
        after(results)
    except Exception:  # what can't be written down is no reason to find out less
        traceback.print_exc()
    except Stopped:
        return _tell(after, results) or True
    return False


def _run(stage: Stage, context: Context, allowed: float) -> Outcome:
    if allowed < 1:
        return Outcome(MISSING, "no time was left for it")
    try:
        return stage.run(context, allowed)
    except Exception as error:  # a stage's own fault is its result, with the place
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Outcome(FAILED, f"{type(error).__name__} at {where}: {error}")


def exit_status(results: Sequence[Result]) -> int:
    """1 where a stage failed or none ran to its end; a stage that was cut off or could not run here
    is in the summary and no failure."""
    states = [result.outcome.state for result in results]
    return 1 if FAILED in states or OK not in states else 0
