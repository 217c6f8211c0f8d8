"""What a comparison of training runs found: checks, table, CSV, plot."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store import replacing, write_text
from . import speed
from .history import FIRST_STEPS
from .run import Run
from .train import TrainingRun

LAST_EPOCHS = 10
TARGET_PERPLEXITY = 1.33
TARGET_EPOCHS = 500
TARGET_AGREEMENT = 1e-4

LABELS = {"scratch": "scratch", "rnnfast": "rnnfast", "torch": "torch.nn"}


@dataclass(frozen=True)
class Check:
    """A claim and whether it held; ``passed`` is None where it could not be asked."""

    claim: str
    finding: str
    passed: bool | None

    def __str__(self) -> str:
        verdict = {True: "pass", False: "FAIL", None: "not checked"}[self.passed]
        return f"[{verdict}] {self.claim}: {self.finding}"


def relative_differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """|ours - theirs| / |theirs|, step by step, over the steps that both have."""
    return [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=False)]


def agreement_check(ours: Run[Any], theirs: Run[Any]) -> Check:
    """Whether two runs from the same weights have the same losses in the first steps."""
    differences = relative_differences(ours.history.first_losses, theirs.history.first_losses)
    claim = (
        f"copied weights: the loss curves of {LABELS[ours.implementation]} and "
        f"{LABELS[theirs.implementation]} agree for the first {FIRST_STEPS} steps within "
        f"{TARGET_AGREEMENT:.0e} relative"
    )
    if not differences:
        return Check(claim, "no step was taken", None)
    worst = max(differences)
    finding = f"largest difference {worst:.1e} in {len(differences)} steps"
    return Check(claim, finding, worst <= TARGET_AGREEMENT)


def perplexity_check(run: TrainingRun) -> Check:
    """Whether a full run on the real text reaches the chapter's perplexity."""
    label = LABELS[run.implementation]
    claim = f"{label}: mean perplexity of the last {LAST_EPOCHS} epochs <= {TARGET_PERPLEXITY}"
    if not run.epoch:
        return Check(claim, "no epoch was trained", None)
    mean = run.history.mean_perplexity(LAST_EPOCHS)
    finding = f"{mean:.3f}"
    if run.corpus.is_standin:
        return Check(claim, f"{finding}; the target is for the real text", None)
    if run.epoch < TARGET_EPOCHS:
        return Check(claim, f"{finding}; the target is for {TARGET_EPOCHS} epochs", None)
    return Check(claim, finding, mean <= TARGET_PERPLEXITY)


def checks(runs: Sequence[TrainingRun]) -> list[Check]:
    """Every check that applies to ``runs``; the last run is the one compared against."""
    found = [agreement_check(run, runs[-1]) for run in runs[:-1]]
    return found + [perplexity_check(run) for run in runs]


def table(runs: Sequence[Run[Any]], last: int = LAST_EPOCHS) -> str:
    """Perplexity and speed of each run: medians over the epochs, and their quartiles. The ratio is
    to the epoch of the last run that ran beside it."""
    validated = any(run.history.validation for run in runs)
    header = ["implementation", "epochs", f"ppl, last {last}", "ppl, last"]
    header += [f"validation, last {last}"] if validated else []
    rows = [[*header, *speed.HEADER]]
    for run in runs:
        history = run.history
        row = [LABELS[run.implementation], str(run.epoch), f"{history.mean_perplexity(last):.3f}"]
        row.append(f"{history.perplexity[-1]:.3f}")
        row += [f"{history.mean_validation(last):.3f}"] if validated else []
        rows.append([*row, *speed.columns([run], [runs[-1]])])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text, the first row its header; the first column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_curves(path: str | os.PathLike[str], runs: Sequence[Run[Any]]) -> None:
    """CSV, one row per implementation and epoch: perplexity, validation, tokens, seconds."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["implementation", "epoch", "perplexity", "validation", "tokens", "seconds"])
    for run in runs:
        history = run.history
        validation = [*map(repr, history.validation)] or [""] * run.epoch
        columns = zip(history.perplexity, validation, history.tokens, history.seconds, strict=True)
        for epoch, (perplexity, held_out, tokens, seconds) in enumerate(columns, start=1):
            row = [run.implementation, epoch, repr(perplexity), held_out, tokens, f"{seconds:.6f}"]
            writer.writerow(row)
    write_text(path, stream.getvalue())


def write_first_steps(path: str | os.PathLike[str], runs: Sequence[Run[Any]]) -> None:
    """CSV, one row per step of the first steps: the loss of each run."""
    lines = ["step," + ",".join(run.implementation for run in runs)]
    losses = zip(*(run.history.first_losses for run in runs), strict=False)
    for step, values in enumerate(losses, start=1):
        lines.append(",".join([str(step), *map(repr, values)]))
    write_text(path, "\n".join(lines) + "\n")


def write_plot(path: str | os.PathLike[str], runs: Sequence[Run[Any]]) -> None:
    """Perplexity against epochs, every run in one picture: ``.png`` or ``.svg``, by its name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for run, style in zip(runs, ("-", "--", ":"), strict=False):
        epochs, label = range(1, run.epoch + 1), LABELS[run.implementation]
        (line,) = axes.plot(epochs, run.history.perplexity, style, linewidth=1, label=label)
        if run.history.validation:
            axes.plot(
                epochs, run.history.validation, style, linewidth=1, alpha=0.5,
                color=line.get_color(), label=f"{label}, validation",
            )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="perplexity", yscale="log", title=runs[0].title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    with replacing(path) as stream:
        figure.savefig(stream, format=os.path.splitext(path)[1][1:])


def write_plots(folder: Path, runs: Sequence[Run[Any]]) -> None:
    """``curves.png`` and ``curves.svg`` in ``folder``."""
    for name in ("curves.png", "curves.svg"):
        write_plot(folder / name, runs)
