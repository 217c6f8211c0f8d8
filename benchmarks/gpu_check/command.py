"""The check of a GPU as one command (first.py): what it does, in which order, until when.

It imports no torch and touches no device: everything that could hang or crash is in processes that
it can end (children.py).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from . import as_if, checks, rates, ready, timing
from .children import end_orphans
from .results import Results
from .stages import (
    FAILED,
    Context,
    Deadline,
    Outcome,
    Result,
    Stage,
    Stopped,
    exit_status,
    run_stages,
)

BUDGET = 540.0  # seconds, a build included
RESERVE = 10.0  # of it, for the last words
ON_EXECUTOR = ("tests.simt.build",)  # the kernels of a dry run
# Seconds of what is left after a build, by what each tells.
STAGES = (
    Stage("smoke", 30, checks.smoke, ON_EXECUTOR),
    Stage("rates", 35, rates.run, ("benchmarks.gpu_check.programs", "--executor")),
    Stage("speed", 80, timing.speed),
    Stage("tests", 100, checks.tests, ON_EXECUTOR),
    Stage("rest", 60, timing.rest),
    Stage("memcheck", 40, checks.memcheck, ON_EXECUTOR),
    Stage("layers", 25, timing.layers),
    Stage("sanitizers", 25, checks.sanitizers),
    Stage("peers", 15, timing.peers),
)
ROOT = ready.ROOT
DRY_FOLDER = rates.FOLDER / "dry-run"
AS_IF_FOLDER = rates.FOLDER / "as-if"
NOT_READY = 2  # the exit status where nothing could be measured
Make = Callable[[Context, Deadline], ready.Ready]


def main(
    arguments: Sequence[str] | None = None,
    stages: Sequence[Stage] = STAGES,
    make_ready: Make = ready.make,
) -> int:
    """The exit status: 0; 1 where a stage failed, or a signal ended it; 2 where nothing ran."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    deadline = Deadline(asked.budget)
    names = asked.only.split(",") if asked.only else [stage.name for stage in stages]
    unknown = set(names) - {stage.name for stage in stages}
    if unknown:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}")
    out = asked.out.resolve() if asked.out else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # if that can't be, it says so now
    _clear_up()
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    work = rates.FOLDER / f"work-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    context = Context(work, asked.dry_run, asked.prebuilt, cores, asked.as_if)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    chosen = [stage for stage in stages if stage.name in names]
    if asked.as_if:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nor is one used that is there
        chosen = as_if.rehearsed(chosen)
    try:
        return _check(context, deadline, chosen, make_ready, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # the archive has it


def _check(
    context: Context,
    deadline: Deadline,
    stages: Sequence[Stage],
    make_ready: Make,
    out: Path | None,
) -> int:
    began = deadline.left()
    try:
        found = make_ready(context, deadline)
    except (Exception, Stopped) as error:
        return _not_ready(context, out, error, began - deadline.left())
    results = Results(out or _folder(context, str(found.facts.get("slug"))), context)
    results.facts = found.facts
    if context.dry_run:
        results.say("Dry run: no device is used; its numbers say nothing about a GPU.")
    if context.as_if:
        results.say(f"No device: as if there were one of {context.as_if}; nothing is measured.")
    for built in found.build:
        results.say(_told(built))

    def after(so_far: list[Result]) -> None:
        results.say(_told(so_far[-1]))
        results.write(so_far)

    results.write(found.build)
    if found.compiled:
        ready.keep_build(results.folder)
    inner = Deadline(max(0.0, deadline.left() - min(RESERVE, deadline.left() / 10)))
    done = run_stages(stages, context, inner, after, found.build)
    print(f"\n{results.page}\n{results.folder}", flush=True)
    ran = done[len(found.build) :]
    return exit_status(ran) if len(ran) == len(stages) else 1


def _clear_up() -> None:
    """After a check that was killed itself."""
    end_orphans()
    for work in rates.FOLDER.glob("work-*"):
        if not Path("/proc", work.name.removeprefix("work-")).exists():
            shutil.rmtree(work, ignore_errors=True)


def _told(result: Result) -> str:
    outcome = result.outcome
    return f"{result.name}: {outcome.state}: {outcome.line} ({result.seconds:.0f} s)"


def _not_ready(context: Context, out: Path | None, error: BaseException, seconds: float) -> int:
    """Loudly: the reason first and last, and in the folder."""
    kind = "" if isinstance(error, ready.NotReady) else f"{type(error).__name__}: "
    line = f"gpu-check: nothing was measured: {kind}{error}"
    results = Results(out or rates.FOLDER / "not-ready", context)
    results.say(line, quietly=True)
    results.write([Result("ready", Outcome(FAILED, line), seconds, seconds)])
    print(f"{results.page}\n{results.folder}", flush=True)
    print(line, file=sys.stderr)
    return NOT_READY


def _folder(context: Context, slug: str) -> Path:
    """A dry run's is never a device's."""
    if context.dry_run:
        return DRY_FOLDER
    if context.as_if:
        return AS_IF_FOLDER
    return ROOT / "benchmarks" / "results" / re.sub(r"[^\w.-]", "-", slug) / "gpu-check"


def _stop(number: int, _: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # what is under way now is the end
    raise Stopped(signal.Signals(number).name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="first.py", description=__doc__)
    add = parser.add_argument
    add("--prebuilt", action="store_true", help="compile nothing: what is there is checked")
    none = parser.add_mutually_exclusive_group().add_argument
    none("--dry-run", action="store_true", help="without a device, to exercise the scripts")
    none("--as-if", metavar="9.0", help="as on such a device, until each stage ends for want of it")
    add("--budget", type=float, default=BUDGET, help=f"seconds for all (default {BUDGET:g})")
    add("--only", help=f"of {','.join(stage.name for stage in STAGES)}, with commas between")
    add("--out", type=Path, help="folder (default benchmarks/results/<device>/gpu-check)")
    return parser
