"""`python -m benchmarks.run`: rnnfast's layers against torch.nn's, case by case."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import torch

from . import gate, machine, measure, overhead, roofs, table, workload
from .cases import SETS, Case, select
from .records import BUSY, RESULTS
from .table import Row
from .workload import LayerWork

BUDGET, OVERHEAD_BUDGET = 10.0, 20.0  # seconds a case
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    candidate: str
    backend: str
    device: str
    dtype: str
    mode: str
    threads: int
    budget: float
    overhead: bool
    seed: int
    set: str = "cases"

    @property
    def stem(self) -> str:
        """The name of the result files, without their suffix."""
        side = "torch-nn" if self.candidate == "torch.nn" else f"rnnfast-{self.backend}"
        kind = ["overhead"] if self.overhead else [] if self.set == "cases" else [self.set]
        return "-".join([*kind, side, self.mode, self.dtype])


def measure_case(case: Case, settings: Settings) -> Row:
    """Gate, then timing. A case that fails is not timed, unless nearly right; its row says why."""
    row = Row(case.name, settings.mode, settings.candidate, settings.backend, taken="")
    try:
        reference, candidate = workload.build(
            case,
            settings.candidate,
            dtype=getattr(torch, settings.dtype),
            device=settings.device,
            mode=settings.mode,
            seed=settings.seed,
        )
        backend, taken = workload.choose_backend(
            settings.candidate, settings.backend, candidate, torch_only=settings.overhead
        )
        row = replace(row, backend=backend, taken=taken)
        with workload.use_backend(settings.candidate, backend):
            return _gate_and_time(row, reference, candidate, settings)
    except (RuntimeError, TypeError, ValueError) as error:  # what layers raise
        return replace(row, status="failed", reason=f"{type(error).__name__}: {error}")


def _gate_and_time(row: Row, reference: LayerWork, candidate: LayerWork, settings: Settings) -> Row:
    verdict = gate.check(reference, candidate)
    status = "ok" if verdict.passed else "near" if verdict.near else "failed"
    row = replace(row, status=status, reason=verdict.reason, gate=verdict.worst)
    if status == "failed":
        return row
    timer = measure.timer_for(settings.device)
    pairs = measure.alternate(reference, candidate, settings.budget, timer=timer)
    return replace(row, **table.timings(pairs))


def run(cases: Sequence[Case], settings: Settings) -> Iterator[Row]:
    """Raises RuntimeError where a layer changes the number of threads under the measurement, or
    leaves the device with an error that stays."""
    with _threads(settings.threads):
        for case in cases:
            row = measure_case(case, settings)
            yield row
            if row.status == "failed" and settings.device.startswith("cuda"):
                torch.cuda.synchronize(settings.device)
            if torch.get_num_threads() != settings.threads:
                found = f"{torch.get_num_threads()} threads instead of {settings.threads}"
                raise RuntimeError(f"{case.name} left torch with {found}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save(folder: Path, settings: Settings, facts: dict[str, Any], rows: Sequence[Row]) -> Path:
    """Writes the rows as CSV and the facts as JSON beside it; returns the path of the CSV.

    A run of fewer or other cases than its set has gets `-partial` in its name.
    """
    expected = (overhead.BARE if settings.overhead else ()) + SETS[settings.set]
    complete = [row.case for row in rows] == [case.name for case in expected]
    partial = folder / f"{settings.stem}-partial.csv"
    path = folder / f"{settings.stem}.csv" if complete else partial
    table.write_csv(path, rows)
    table.write_json(path.with_suffix(".json"), {**facts, "settings": asdict(settings)})
    if complete:  # the rows up to the last one
        for part in (partial, partial.with_suffix(".json")):
            part.unlink(missing_ok=True)
    return path


HEADER = (
    f"{'case':26} {'torch ms':>9} {'ours ms':>9} {'ratio':>6} {'quartiles':>11} {'95 %':>11} "
    f"{'pairs':>6} {'µs a call':>10} {'GF/s torch':>10} {'ours':>6}  backend"
)


def line(row: Row) -> str:
    if row.status == "failed":
        return f"{row.case:26} FAILED: {row.reason}"
    near = "" if row.timed else f"  NEAR MISS: {row.reason}"
    return (
        f"{row.case:26} {row.torch_ms:9.3f} {row.candidate_ms:9.3f} {row.ratio:6.3f} "
        f"{row.ratio_q1:5.3f}–{row.ratio_q3:5.3f} {row.ratio_low:5.3f}–{row.ratio_high:5.3f} "
        f"{row.pairs:6d} {row.overhead_us:10.1f} {row.torch_gflops:10.1f} "
        f"{row.candidate_gflops:6.1f}  {row.taken}{near}"
    )


def summary(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row.timed]
    losses = sum(row.ratio < 1 for row in timed)
    least = min((row.ratio for row in timed), default=nan)
    return (
        f"geometric mean of {len(timed)} ratios: {table.geometric_mean(rows):.3f} "
        f"(torch / ours, above 1 is faster), least {least:.3f}; "
        f"below 1: {losses}; failed: {len(rows) - len(timed)}; "
        f"torch's kernels taken: {sum(row.taken == 'torch' for row in timed)}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where a case failed. Times never decide it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        cases = select(options.cases, SETS[options.set])
        settings = _settings(options)
    except ValueError as error:
        parser.error(str(error))
    show, close, header = line, summary, HEADER
    if settings.overhead:
        cases = overhead.BARE + cases
        show, close, header = overhead.line, overhead.summary, overhead.HEADER
    total = len(cases) * settings.budget
    print(
        f"{len(cases)} cases × {settings.budget:g} s = {total:g} s, and the gate of each; "
        f"{settings.mode}, {settings.dtype}, {settings.device}, {settings.threads} threads"
    )
    rows: list[Row] = []
    with _threads(settings.threads):
        facts = machine.facts(settings.device)
        facts["roofs"] = roofs.of(settings.device, settings.threads)
    if facts["load_average"][0] > BUSY:
        print(
            f"note: load average {facts['load_average'][0]}: something else runs here, or just did"
        )
    print(header)
    folder = options.out or RESULTS / machine.slug(settings.device, settings.threads)
    for row in run(cases, settings):
        rows.append(row)
        print(show(row), flush=True)
        path = save(folder, settings, facts, rows)  # each time: a run may be ended at any moment
    print(f"{close(rows)}\n{os.path.relpath(path)}")
    return 0 if all(row.timed for row in rows) else 1


def _settings(options: argparse.Namespace) -> Settings:
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device}: torch sees no GPU here")
    if options.candidate == "torch.nn" and options.backend != "auto":
        raise ValueError("--backend chooses among rnnfast's; --candidate torch.nn has none")
    if options.overhead and options.backend != "auto":
        raise ValueError("--overhead measures what `auto` costs; leave --backend out")
    if options.overhead and options.set != "cases":
        raise ValueError("--overhead has cases of its own; leave --set out")
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: at least one")
    return Settings(
        candidate=options.candidate,
        backend="" if options.candidate == "torch.nn" else options.backend,
        device=options.device,
        dtype=options.dtype,
        mode=options.mode,
        threads=options.threads,
        budget=options.budget or (OVERHEAD_BUDGET if options.overhead else BUDGET),
        overhead=options.overhead,
        seed=options.seed,
        set=options.set,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    add = parser.add_argument
    add("--backend", default="auto", help="auto, or a backend by name (default: auto)")
    add(
        "--candidate",
        choices=workload.CANDIDATES,
        default="rnnfast",
        help="torch.nn: both sides the same, which shows the noise floor",
    )
    add("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add(
        "--set",
        choices=SETS,
        default="cases",
        help="the 18, shapes by chance, or one size after the other swept (default: cases)",
    )
    add(
        "--cases",
        default="*",
        help="patterns with commas between (gru, *-H256), or any shape by its full name",
    )
    add("--dtype", choices=DTYPES, default="float32")
    add("--mode", choices=workload.MODES, default="train")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own")
    add(
        "--budget",
        type=float,
        help=f"seconds a case (default: {BUDGET:g}; with --overhead {OVERHEAD_BUDGET:g})",
    )
    add("--overhead", action="store_true", help="what `auto` adds to torch.nn on the torch backend")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="folder of the results (default: benchmarks/results/<device>)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
