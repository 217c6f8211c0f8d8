"""Layers on a machine that others use too: a busy process on each core, or too many threads.

    python -m benchmarks.loaded [--seconds S] [--cases PATTERNS] [--threads N] [--processes N]

writes more/loaded.csv beside the results of the layers. A call is forward and backward. Each case
is timed when the machine is quiet and again with the load, rnnfast and torch.nn in turn
(measure.py); what is told is the quiet time of each and how many times that the loaded one is.
With two processes on a core each gets half of it, so 2 is what can be hoped for where all cores
have work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from . import records
from .cases import Case, select
from .measure import alternate
from .workload import build

BUSY = "while True: pass"


class Times(NamedTuple):
    """Seconds of a call, median."""

    torch: float
    rnnfast: float


@dataclass(frozen=True)
class Row:
    """A case; milliseconds when the machine is quiet, and how many times that with the load."""

    case: str
    torch_ms: float
    torch_loaded: float
    rnnfast_ms: float
    rnnfast_loaded: float


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


def compare(cases: Sequence[Case], seconds: float, processes: int) -> Iterator[Row]:
    for case in cases:
        quiet = measured(case, seconds)
        with busy(processes):
            loaded = measured(case, seconds)
        times = [after / before for before, after in zip(quiet, loaded, strict=True)]
        yield Row(case.name, quiet.torch * 1e3, times[0], quiet.rnnfast * 1e3, times[1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loaded")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case, twice")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default="", help="as benchmarks.run has it; else all")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="busy ones; one a core if not given"
    )
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    facts = records.facts("cpu", args.threads, seconds=args.seconds, processes=args.processes)
    print(f"{'case':28}{'torch.nn ms':>12}{'loaded':>9}{'rnnfast ms':>12}{'loaded':>9}")
    rows = []
    for row in compare(select(args.cases), args.seconds, args.processes):
        rows.append(row)
        print(
            f"{row.case:28}{row.torch_ms:12.2f}{row.torch_loaded:8.1f}x"
            f"{row.rnnfast_ms:12.2f}{row.rnnfast_loaded:8.1f}x",
            flush=True,
        )
    path = args.out or records.folder("cpu", args.threads) / "loaded.csv"
    records.write(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
