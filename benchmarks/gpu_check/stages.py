"""Stages one after the other within a budget.

One that fails, or whose time is up, does not stop the next; what it has found by then is kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, CUT, MISSING = "ok", "FAILED", "CUT OFF", "NOT RUN"


@dataclass(frozen=True)
class Context:
    """Where everything goes, and how it is run.

    Attributes:
        folder: of the results. prebuilt: nothing is compiled. dry_run: without a device.
    """

    folder: Path
    dry_run: bool
    prebuilt: bool

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"


@dataclass
class Outcome:
    """What a stage has to say: its state, a line or two, and what the summary draws from."""

    state: str
    line: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """share: of the budget, relative to the others'. run: given the seconds it may take."""

    name: str
    share: float
    run: Callable[[Context, float], Outcome]


@dataclass(frozen=True)
class Result:
    name: str
    outcome: Outcome
    seconds: float
    allowed: float


def run_stages(
    stages: Sequence[Stage],
    context: Context,
    budget: float,
    after: Callable[[list[Result]], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Runs them in order; ``after`` is called with all results so far after each.

    A stage may take its share of the time that is left: what one leaves over goes to those that
    follow, and what one overruns is taken from them alike.
    """
    start = clock()
    results: list[Result] = []
    for place, stage in enumerate(stages):
        began = clock()
        left = max(0.0, budget - (began - start))
        allowed = left * stage.share / sum(later.share for later in stages[place:])
        outcome = _run(stage, context, allowed)
        results.append(Result(stage.name, outcome, clock() - began, allowed))
        after(results)
    return results


def _run(stage: Stage, context: Context, allowed: float) -> Outcome:
    if allowed < 1:
        return Outcome(MISSING, "no time was left for it")
    try:
        return stage.run(context, allowed)
    except Exception as error:  # a stage's own fault is its result, with the place
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Outcome(FAILED, f"{type(error).__name__} at {where}: {error}")


@dataclass(frozen=True)
class Finished:
    """code: the exit status, or None where the time was up."""

    code: int | None
    text: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def run_command(
    command: Sequence[str], seconds: float, log: Path, environment: Mapping[str, str] | None = None
) -> Finished:
    """Runs a command and all it starts for so long at most. What it prints goes to `log` as it
    comes, so that it is there whatever happens."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        child = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # its own session: the command and its children
            child.wait()
    return Finished(code, log.read_text(errors="replace"))


def exit_status(results: Sequence[Result]) -> int:
    """1 where a stage failed or none ran to its end; a stage that was cut off or could not run here
    is in the summary and no failure."""
    states = [result.outcome.state for result in results]
    return 1 if FAILED in states or OK not in states else 0
