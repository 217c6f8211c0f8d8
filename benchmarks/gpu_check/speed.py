"""The benchmark against cuDNN: `benchmarks.run` over what the design is about, most important
first, each group in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from .. import table
from ..table import Row
from .stages import CUT, FAILED, OK, Context, Outcome, run_command


class Group(NamedTuple):
    """One run of `benchmarks.run`."""

    backend: str
    dtype: str
    mode: str
    cases: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.backend} {self.dtype} {self.mode}"


# Where cuDNN has no persistent kernel (H > 192); its own best sizes; the size of the figure that
# benchmarks/latency quotes.
LSTM = (
    "lstm-T256-B64-I512-H512",
    "lstm-T1024-B16-I768-H768",
    "lstm-T256-B64-I256-H256",
    "lstm-T256-B64-I1024-H1024",
    "lstm-T256-B64-I128-H128",
)
GRU = ("gru-T256-B64-I512-H512", "gru-T256-B64-I128-H128", "gru-T256-B64-I1024-H1024")
GROUPS = (
    Group("cuda", "bfloat16", "train", LSTM + GRU),
    Group("cuda", "float32", "train", LSTM[:3] + GRU[:1]),
    Group("cuda", "bfloat16", "forward", LSTM[:2] + GRU[:1]),
    Group("triton", "bfloat16", "train", LSTM[:2]),
    Group("cuda", "float16", "train", LSTM[:2]),
)
DRY_GROUPS = (Group("cpu", "float32", "train", ("lstm-T3-B2-I3-H4", "gru-T3-B2-I3-H4")),)
TIMED = 0.5  # of a group's time; the rest is imports, gates and calls that overrun
LEAST = 0.02  # seconds a case


def run(context: Context, seconds: float) -> Outcome:
    """Writes the CSV files of `benchmarks.run`, a group each."""
    groups = DRY_GROUPS if context.dry_run else GROUPS
    all_cases = sum(len(group.cases) for group in groups)
    states = []
    for group in groups:
        share = seconds * len(group.cases) / all_cases
        budget = max(LEAST, 0.1 if context.dry_run else TIMED * share / len(group.cases))
        command = [sys.executable, "-m", "benchmarks.run", "--device", context.device]
        command += ["--backend", group.backend, "--dtype", group.dtype, "--mode", group.mode]
        command += ["--cases", ",".join(group.cases), "--budget", f"{budget:.3g}"]
        command += ["--threads", "1", "--out", str(context.folder)]
        log = context.folder / f"speed-{group.name.replace(' ', '-')}.txt"
        states.append(run_command(command, share, log).code)
    return judge(read(context.folder), states)


def read(folder: Path) -> dict[str, list[Row]]:
    """The rows that are there, by the name of their file."""
    return {path.stem: table.read_csv(path) for path in sorted(folder.glob("rnnfast-*.csv"))}


def judge(found: dict[str, list[Row]], codes: list[int | None]) -> Outcome:
    rows = [row for rows in found.values() for row in rows]
    timed = [row for row in rows if row.timed]
    failed = [f"{row.case} on {row.backend}: {row.reason}" for row in rows if not row.timed]
    line = f"{len(timed)} cases timed"
    if timed:
        line += f", {sum(row.ratio > 1 for row in timed)} of them faster than torch.nn"
    if failed:
        line += f", {len(failed)} failed"
    crashed = sum(code is not None and code != 0 for code in codes)
    if failed or not timed or crashed:
        if crashed:
            line += f", {crashed} of {len(codes)} runs with an exit status that is not 0"
        return Outcome(FAILED, line, {"failed": failed})
    return Outcome(CUT if None in codes else OK, line, {"failed": failed})
