"""What a comparison of training runs found: checks, table, CSV, plot."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

from .files import replacing, write_text
from .train import FIRST_STEPS, TrainingRun

LAST_EPOCHS = 10
TARGET_PERPLEXITY = 1.33
TARGET_EPOCHS = 500
TARGET_AGREEMENT = 1e-4

LABELS = {"rnnfast": "rnnfast", "torch": "torch.nn"}


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


def agreement_check(ours: TrainingRun, theirs: TrainingRun) -> Check:
    """Whether two runs from the same weights have the same losses in the first steps."""
    differences = relative_differences(ours.history.first_losses, theirs.history.first_losses)
    claim = (
        f"copied weights: the two loss curves agree for the first {FIRST_STEPS} steps within "
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


def table(runs: Sequence[TrainingRun]) -> str:
    """Perplexity and speed of each run; the ratio is to the last one."""
    reference = runs[-1].history.tokens_per_second()
    rows = [
        ("implementation", "epochs", f"ppl, last {LAST_EPOCHS}", "ppl, last", "tokens/s", "ratio")
    ]
    for run in runs:
        speed = run.history.tokens_per_second()
        rows.append(
            (
                LABELS[run.implementation],
                str(run.epoch),
                f"{run.history.mean_perplexity(LAST_EPOCHS):.3f}",
                f"{run.history.perplexity[-1]:.3f}",
                f"{speed:,.0f}",
                f"{speed / reference:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_curves(path: str | os.PathLike[str], runs: Sequence[TrainingRun]) -> None:
    """CSV, one row per implementation and epoch: perplexity, tokens, seconds."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["implementation", "epoch", "perplexity", "tokens", "seconds"])
    for run in runs:
        history = run.history
        columns = zip(history.perplexity, history.tokens, history.seconds, strict=True)
        for epoch, (perplexity, tokens, seconds) in enumerate(columns, start=1):
            writer.writerow([run.implementation, epoch, repr(perplexity), tokens, f"{seconds:.6f}"])
    write_text(path, stream.getvalue())


def write_first_steps(path: str | os.PathLike[str], runs: Sequence[TrainingRun]) -> None:
    """CSV, one row per step of the first steps: the loss of each run."""
    lines = ["step," + ",".join(run.implementation for run in runs)]
    losses = zip(*(run.history.first_losses for run in runs), strict=False)
    for step, values in enumerate(losses, start=1):
        lines.append(",".join([str(step), *map(repr, values)]))
    write_text(path, "\n".join(lines) + "\n")


def write_plot(path: str | os.PathLike[str], runs: Sequence[TrainingRun]) -> None:
    """PNG of perplexity against epochs, every run in one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for run, style in zip(runs, ("-", "--", ":"), strict=False):
        epochs = range(1, run.epoch + 1)
        axes.plot(
            epochs, run.history.perplexity, style, linewidth=1, label=LABELS[run.implementation]
        )
    axes.set(xlabel="epoch", ylabel="training perplexity", yscale="log", title=runs[0].corpus.title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    with replacing(path) as stream:
        FigureCanvasAgg(figure).print_png(stream)
