"""`python -m rnnfast tune`: measures this machine, for `auto` to choose by."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from .backends import measured
from .backends.measured import Point
from .tuning import FULL, QUICK, tune_table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rnnfast tune",
        description="Measures torch's kernels against rnnfast's at many sizes, so that auto takes "
        "the faster one on this machine. Run it on an idle machine, with the number of threads "
        "that you train or serve with.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="fewer sizes: less than half a minute")
    what.add_argument("--show", action="store_true", help="print what is kept, measure nothing")
    what.add_argument("--forget", action="store_true", help="delete what is kept")
    parser.add_argument("--threads", type=int, help="default: what torch uses")
    args = parser.parse_args(argv)
    if args.threads is not None:
        if args.threads < 1:
            parser.error("--threads should be 1 or more")
        torch.set_num_threads(args.threads)
    if args.show:
        return _show()
    if args.forget:
        return _forget()
    try:
        return _measure(quick=args.quick)
    except RuntimeError as error:
        print(f"rnnfast tune: {error}", file=sys.stderr)
        return 1


def _measure(quick: bool) -> int:
    grid = QUICK if quick else FULL
    count = len(list(grid.cases()))
    print(f"{_where()}\n{count} sizes, at most {grid.seconds:g} s each\n\n{_HEAD}", flush=True)
    file = tune_table(grid, lambda point: print(_line(point), flush=True))
    print(f"\nkept in {file}")
    return 0


def _show() -> int:
    own = measured.local()
    print(f"{_where()}\n{measured.file_of(torch.get_num_threads())}")
    if own.points:
        print("\n".join(["", _HEAD, *map(_line, own.points)]))
    for call, backend in own.calls.items():
        print(f"{call}: {backend}")
    if not own.points and not own.calls:
        print("nothing was measured here: auto goes by the tables that ship")
    return 0


def _forget() -> int:
    file = measured.file_of(torch.get_num_threads())
    print(f"deleted {file}" if file.exists() else "nothing is kept")
    file.unlink(missing_ok=True)
    return 0


_HEAD = "cell      mode         T     B     H      torch us        cpu us  torch/cpu"


def _line(p: Point) -> str:
    mode = "training" if p.training else "inference"
    return (
        f"{p.cell:9} {mode:9} {p.T:5} {p.B:5} {p.H:5} {p.torch:13.1f} {p.cpu:13.1f} "
        f"{p.torch / p.cpu:10.2f}"
    )


def _where() -> str:
    facts = measured.machine()
    return f"{facts['processor']} ({facts['isa']}), torch {facts['torch']}, " + (
        f"{torch.get_num_threads()} threads"
    )
