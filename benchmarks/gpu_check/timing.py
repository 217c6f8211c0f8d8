"""How fast the kernels are against cuDNN: `benchmarks.run` over what the design is about, most
important first; layers on top of one another; other kernels where they are installed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import table
from ..table import Row
from . import rows
from .children import Command, Finished, run
from .stages import CUT, FAILED, MISSING, OK, Context, Outcome
from .summary import listed


class Group(NamedTuple):
    """One run of `benchmarks.run`, in a process of its own. share: of the stage's time, relative
    to the others'."""

    backend: str
    dtype: str
    mode: str
    cases: tuple[str, ...]
    share: float = 1

    @property
    def name(self) -> str:
        cell = self.cases[0] if len(self.cases) == 1 else "cases"
        return f"{self.backend}-{self.dtype}-{self.mode}-{cell}"


# Where cuDNN has no persistent kernel (H > 192); its own best sizes; the size of the figure that
# benchmarks/latency quotes.
FIRST = (
    "lstm-T256-B64-I512-H512",
    "gru-T256-B64-I512-H512",
    "lstm-T1024-B16-I768-H768",
    "lstm-T256-B64-I128-H128",
    "gru-T256-B64-I128-H128",
)
MORE = (
    "lstm-T256-B64-I256-H256",
    "lstm-T256-B64-I1024-H1024",
    "gru-T256-B64-I1024-H1024",
)
SPEED = tuple(Group("cuda", "bfloat16", "train", (case,)) for case in FIRST)
REST = (
    Group("triton", "bfloat16", "train", FIRST[:2], 2.5),  # compiles its kernels
    Group("cuda", "bfloat16", "train", MORE),
    Group("cuda", "float32", "train", FIRST[:4]),
    Group("cuda", "bfloat16", "forward", FIRST[:3]),
    Group("cuda", "float16", "train", FIRST[:2]),
)
DRY_SPEED = (Group("cpu", "float32", "train", ("lstm-T3-B2-I3-H4",)),)
DRY_REST = (Group("cpu", "float32", "forward", ("gru-T3-B2-I3-H4", "lstm-T3-B2-I3-H4")),)
TIMED = 0.4  # of a group's time; the rest is imports, gates and calls that overrun
LEAST = 0.02  # seconds a case

# Small batches, whose blocks leave room for other layers' beside them.
LAYERS = ("lstm-T512-B16-I128-H128", "gru-T512-B16-I128-H128", "lstm-T256-B64-I256-H256")
DRY_LAYERS = ("lstm-T16-B2-I3-H4",)
PARTS = (0, 32, 64, 128)  # steps; 0: one layer after the other

PEERS = {"FlashRNN": "flashrnn", "haste": "haste_pytorch"}  # what they are imported as
PEER_CASES = ("lstm-T1024-B16-I768-H768", "lstm-T256-B64-I512-H512", "gru-T256-B64-I512-H512")


def speed(context: Context, seconds: float) -> Outcome:
    return _groups(context, seconds, "speed", DRY_SPEED if context.dry_run else SPEED)


def rest(context: Context, seconds: float) -> Outcome:
    return _groups(context, seconds, "rest", DRY_REST if context.dry_run else REST)


def _groups(context: Context, seconds: float, stage: str, groups: Sequence[Group]) -> Outcome:
    """Writes the CSV files of `benchmarks.run`, each group's into a folder of its own."""
    until = time.monotonic() + seconds
    done = {}
    for place, group in enumerate(groups):
        left = max(1.0, until - time.monotonic())
        share = left * group.share / sum(later.share for later in groups[place:])
        budget = max(LEAST, 0.1 if context.dry_run else TIMED * share / len(group.cases))
        folder = context.folder / stage / group.name
        words = context.python("benchmarks.run", "--device", context.device)
        words += ("--backend", group.backend, "--dtype", group.dtype, "--mode", group.mode)
        words += ("--cases", ",".join(group.cases), "--budget", f"{budget:.3g}")
        words += ("--threads", "1", "--out", str(folder))
        done[group] = run(Command(words, folder / "run.txt"), share)
    return judge(context.folder / stage, done)


def read(folder: Path) -> dict[str, list[Row]]:
    """The rows that are there, by the folder of their file."""
    found = sorted(folder.glob("*/*.csv"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: table.read_csv(path) for path in found}


def judge(folder: Path, done: dict[Group, Finished]) -> Outcome:
    found = read(folder)
    all_rows = [row for some in found.values() for row in some]
    timed = [row for row in all_rows if row.timed]
    failed = len(all_rows) - len(timed)
    line = f"{len(timed)} cases timed"
    if timed:
        line += f", {sum(row.ratio > 1 for row in timed)} of them faster than torch.nn"
    if failed:
        line += f", {failed} wrong"
    state = FAILED if failed or not timed else OK
    notes = []
    for group, finished in done.items():
        rows_there = len(found.get(group.name, []))
        if finished.code is None:
            state = CUT if state == OK else state
            notes.append(f"{group.name}: cut off after {rows_there} of {len(group.cases)} cases")
        elif finished.code != 0 and rows_there < len(group.cases):
            state = FAILED
            notes.append(f"{group.name}: exit status {finished.code}: {finished.last_line}")
    if notes:
        line += f"; {len(notes)} of {len(done)} runs without an end of their own"
    parts = [section(folder.name, found)] if all_rows else []
    parts += [listed(f"Runs of {folder.name}", notes)] if notes else []
    return Outcome(state, line, "\n\n".join(parts))


def section(title: str, found: dict[str, list[Row]]) -> str:
    lines = [f"## Against torch.nn: {title}", ""]
    lines += ["The ratio is torch.nn's time over ours: above 1 is faster.", ""]
    lines += [
        "| case | run | torch.nn ms | ours ms | ratio | quartiles | ours, µs a step |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for group, some in found.items():
        run_of = "-".join(group.split("-")[:3])
        for row in some:
            what = table.one_line(row.reason)[:120]
            if row.status == "failed":
                lines.append(f"| {row.case} | {run_of} | FAILED: {what} | | | | |")
                continue
            note = "" if row.timed else f" NEAR MISS of its gate: {what}"
            steps = int(row.case.split("-")[1].removeprefix("T"))
            lines.append(
                f"| {row.case}{note} | {run_of} | {row.torch_ms:.3f} | {row.candidate_ms:.3f} "
                f"| {row.ratio:.2f} | {row.ratio_q1:.2f} – {row.ratio_q3:.2f} "
                f"| {1e3 * row.candidate_ms / steps:.2f} |"
            )
    return "\n".join(lines)


def layers(context: Context, seconds: float) -> Outcome:
    """Layers on top of one another, each case in a process of its own."""
    cases = DRY_LAYERS if context.dry_run else LAYERS
    until = time.monotonic() + seconds
    found: list[rows.Row] = []
    codes = []
    for place, case in enumerate(cases):
        limit = max(1.0, (until - time.monotonic()) / (len(cases) - place))
        path = context.folder / f"layers-{case}.csv"
        each = 0.05 if context.dry_run else TIMED * limit / len(PARTS)
        words = context.python("benchmarks.gpu_check.layers", "--device", context.device)
        words += ("--out", str(path), "--case", case, "--seconds", f"{each:.3g}")
        codes.append(run(Command(words, path.with_suffix(".txt")), limit).code)
        found += rows.read(path)
    return judge_rows(found, codes, "Layers on top of one another, training", "rnnfast")


def judge_rows(
    found: list[rows.Row], codes: list[int | None], title: str, what: str, note: str = ""
) -> Outcome:
    failed = sum(bool(row.reason) for row in found)
    line = f"{len(found) - failed} timed, {failed} failed{note}"
    wrong = failed or any(code not in (0, None) for code in codes)
    state = FAILED if wrong else CUT if None in codes else OK
    return Outcome(state, line, rows.section(title, what, found) if found else "")


def installed() -> tuple[list[str], list[str]]:
    """The peers that can be imported, and the others."""
    there = [name for name, module in PEERS.items() if importlib.util.find_spec(module)]
    return there, [name for name in PEERS if name not in there]


def peers(context: Context, seconds: float) -> Outcome:
    """Times those that are installed; says which are missing."""
    there, missing = installed()
    absent = f"not installed: {', '.join(missing)}" if missing else ""
    if not there or context.dry_run:
        line = f"{absent}; nothing is timed in a dry run" if context.dry_run else absent
        return Outcome(MISSING, line.lstrip("; "))
    path = context.folder / "peers.csv"
    each = TIMED * seconds / (len(there) * len(PEER_CASES))
    words = context.python("benchmarks.gpu_check.peers", "--out", str(path))
    words += ("--seconds", f"{each:.3g}")
    done = run(Command(words, path.with_suffix(".txt")), seconds)
    note = f"; {absent}" if absent else ""
    return judge_rows(rows.read(path), [done.code], "Other kernels", "kernel", note)
