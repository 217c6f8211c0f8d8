"""`python -m benchmarks.gpu_check`: rates, tests, sanitizers and speed of this machine's GPU.

Within nine minutes, most important first. Needs no network.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import machine, report
from ..run import RESULTS
from . import checks, layers, peers, programs, rates, speed, summary
from .stages import Context, Result, Stage, exit_status, run_stages

BUDGET = 540.0  # seconds
STAGES = (
    Stage("rates", 12, rates.run),
    Stage("tests", 33, checks.tests),
    Stage("sanitizers", 20, checks.sanitizers),
    Stage("speed", 24, speed.run),
    Stage("layers", 5, layers.run),
    Stage("peers", 6, peers.run),
)
DRY_FOLDER = programs.FOLDER / "dry-run"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where a stage failed."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.build_rates:
        return _build_rates()
    if not asked.dry_run and not torch.cuda.is_available():
        print("gpu-check: this torch sees no GPU (--dry-run needs none)", file=sys.stderr)
        return 1
    names = asked.only.split(",") if asked.only else [stage.name for stage in STAGES]
    unknown = set(names) - {stage.name for stage in STAGES}
    if unknown:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}")
    stages = [stage for stage in STAGES if stage.name in names]
    context = Context(_folder(asked), asked.dry_run, asked.prebuilt)
    context.folder.mkdir(parents=True, exist_ok=True)
    facts = machine.facts(context.device)

    def after(results: list[Result]) -> None:
        last = results[-1]
        print(f"{last.name}: {last.outcome.state}: {last.outcome.line} ({last.seconds:.0f} s)")
        sys.stdout.flush()
        summary.write(context, results, facts)

    if asked.dry_run:
        print("Dry run: no device is used; its numbers say nothing about a GPU.")
    results = run_stages(stages, context, asked.budget, after)
    _plot(context)
    print(os.path.relpath(context.folder / "summary.md"))
    return exit_status(results)


def _folder(asked: argparse.Namespace) -> Path:
    """A dry run's is never a device's."""
    if asked.out is not None:
        return Path(asked.out)
    if asked.dry_run:
        return DRY_FOLDER
    return RESULTS / machine.slug("cuda", 1) / "gpu-check"


def _plot(context: Context) -> None:
    """report.md and report.png of the layers that were timed, where matplotlib is installed."""
    files = sorted(context.folder.glob("rnnfast-*.csv"))
    try:
        if files and not context.dry_run:
            report.write(files, context.folder)
    except ImportError as error:
        print(f"no plot: {error}")


def _build_rates() -> int:
    try:
        print(programs.build())
    except programs.BuildError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    add = parser.add_argument
    add("--prebuilt", action="store_true", help="compile nothing: what is installed is checked")
    add("--dry-run", action="store_true", help="without a device, to exercise the scripts")
    add("--budget", type=float, default=BUDGET, help=f"seconds (default {BUDGET:g})")
    add("--only", help="stages with commas between: rates,tests,sanitizers,speed,peers")
    add("--out", type=Path, help="folder (default benchmarks/results/<device>/gpu-check)")
    add("--build-rates", action="store_true", help="only compile the program of the rates")
    return parser


if __name__ == "__main__":
    sys.exit(main())
