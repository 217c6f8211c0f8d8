"""Layers on a machine that others use too: a busy process on each core, or too many threads.

    python -m benchmarks.loaded [--seconds S] [--cases PATTERNS] [--threads N] [--processes N]

A call is forward and backward. Each case is timed when the machine is quiet and again with the
load, rnnfast and torch.nn in turn (measure.py); what is printed is the quiet time of each and how
many times that the loaded one is. With two processes on a core each gets half of it, so 2 is what
can be hoped for where all cores have work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .cases import Case, select
from .machine import cpu_model
from .measure import alternate
from .workload import build

BUSY = "while True: pass"


class Times(NamedTuple):
    """Seconds of a call, median."""

    torch: float
    rnnfast: float


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """That many processes that never rest."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def measured(case: Case, seconds: float) -> Times:
    """torch.nn and rnnfast as ``auto`` has it."""
    reference, own = build(case, "rnnfast", dtype=torch.float32, device="cpu", mode="train")
    pairs = alternate(reference, own, seconds)
    return Times(statistics.median(pairs.a), statistics.median(pairs.b))


def compare(
    cases: Sequence[Case], seconds: float, processes: int, show: Callable[[str], Any] = print
) -> list[tuple[Times, Times]]:
    """(quiet, loaded) of each case; a line for each is shown."""
    show(f"{'case':28}{'torch.nn ms':>12}{'loaded':>9}{'rnnfast ms':>12}{'loaded':>9}")
    found = []
    for case in cases:
        quiet = measured(case, seconds)
        with busy(processes):
            loaded = measured(case, seconds)
        line = f"{case.name:28}"
        for before, after in zip(quiet, loaded, strict=True):
            line += f"{before * 1e3:12.2f}{after / before:8.1f}x"
        show(line)
        found.append((quiet, loaded))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loaded")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case, twice")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default="", help="as benchmarks.run has it; else all")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="busy ones; one a core if not given"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    print(
        f"{cpu_model()}, {args.threads} threads, {args.processes} busy processes, "
        f"torch {torch.__version__}, load before {load:.1f}"
    )
    compare(select(args.cases), args.seconds, args.processes)


if __name__ == "__main__":
    main()
