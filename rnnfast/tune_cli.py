"""`python -m rnnfast tune`: measures this machine, for `auto` to choose by."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

import torch

from . import store
from .backends import measured, qualified, registry
from .backends.measured import Point
from .qualify import qualify, spread
from .tuning import FULL, QUICK, tune_table

SECONDS = 0.3  # of a timing on a GPU


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
    parser.add_argument(
        "--device",
        help="cpu, or cuda, or cuda:N, which is qualified: every kernel is checked there against "
        "float64 and timed against torch's (default: cuda where torch sees a GPU)",
    )
    args = parser.parse_args(argv)
    gpu = args.threads is None and torch.cuda.is_available()
    device = args.device or ("cuda" if gpu else "cpu")
    if device != "cpu":
        index = _index(device)
        if index is None:
            parser.error(f"--device should be cpu, cuda or cuda:N of a GPU here, got: {device!r}")
        if args.threads is not None:
            parser.error("--threads is for the CPU")
        return _gpu(index, quick=args.quick, show=args.show, forget=args.forget)
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


def _index(device: str) -> int | None:
    """Of a GPU: 0 is one even where torch sees none, so that what follows says why."""
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    index = int(found[1] or 0) if found else -1
    return index if 0 <= index < max(1, torch.cuda.device_count()) else None


def _gpu(index: int, quick: bool, show: bool, forget: bool) -> int:
    file = qualified.file_of(index)
    if forget:
        print(f"deleted {file}" if qualified.forget(index) else "nothing is kept")
        return 0
    told = ", ".join(f"{name} {version}" for name, version in qualified.versions().items())
    print(f"{qualified.device_of(index)}, {told}\n{file}\n", flush=True)
    if show:
        known = qualified.of(index)
        for trial in [] if known is None else known.trials:
            print(_trial(trial))
        print(qualified.summary(index))
        return 0
    names = [b for b in qualified.BACKENDS if registry.BACKENDS[b].unusable() is None]
    if not names:
        reasons = [f"{b}: {registry.BACKENDS[b].unusable()}" for b in qualified.BACKENDS]
        print(f"rnnfast tune: there is nothing to qualify: {'; '.join(reasons)}", file=sys.stderr)
        return 1
    try:
        store.update(file, lambda facts: facts)  # it takes long; not to find this out at its end
        trials = _qualify(index, names, spread.QUICK if quick else spread.FULL)
        qualified.remember(index, trials)
    except OSError as error:
        print(f"rnnfast tune: {file} can't be written: {error}", file=sys.stderr)
        return 1
    print(f"\n{qualified.summary(index)}; kept in {file}")
    return int(any(t.state not in (qualified.RIGHT, qualified.ABSENT) for t in trials))


def _qualify(index: int, names: list[str], sizes: Sequence[spread.Size]) -> list[qualified.Trial]:
    tried = [way for name in names for way in spread.ways(name)]
    cases = list(spread.cases(sizes))
    count, done = len(tried) * len(cases), 0

    def report(trial: qualified.Trial) -> None:
        nonlocal done
        done += 1
        print(f"{done}/{count} {_trial(trial)}", flush=True)

    return qualify(tried, cases, f"cuda:{index}", SECONDS, report)


def _trial(trial: qualified.Trial) -> str:
    line = qualified.described(trial)
    if trial.us and trial.torch_us:
        line += f", {trial.us:.1f} us, torch {trial.torch_us:.1f} us"
    return line


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
