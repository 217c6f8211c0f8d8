"""``lm compare``: scratch, torch.nn and rnnfast on one row of the chapters, from one seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import compare, report, speed
from .cli_common import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    add_place_options,
    begin,
    corpus_of,
    interrupted,
    machine,
    positive,
    require_packages,
    say,
    train_with_bar,
    write_results,
)
from .generate import greedy
from .lm_options import ROWS_HELP, describe
from .model import IMPLEMENTATIONS
from .place import Place
from .recipes import FORMS, ROWS, Recipe, recipe_of
from .run import Run
from .train import TrainingRun

ORDER = ("scratch", "rnnfast", "torch")
"""The last one present is what the others are compared with."""

LAST = {"S2": 10, "S8": 10}
"""Over how many of the last epochs perplexity is averaged; 5 where it is not here."""


def add_compare(commands: Any) -> None:
    """The sub-command's options."""
    made = commands.add_parser(
        "compare",
        help="scratch, torch.nn and rnnfast side by side",
        description="Train one row of the chapters with every implementation, from the same "
        f"weights and in the same order of the data, in turns ({ROWS_HELP}). Prints perplexity, "
        "tokens/s (of the whole training step) and their ratios, checks that the loss curves "
        "agree for the first 50 steps, and writes checkpoints, curves.csv, first_steps.csv, "
        "curves.png and curves.svg for each seed. A seed that DIR holds already is not trained "
        "again.",
    )
    add = made.add_argument
    add("--row", choices=list(ROWS), required=True, help="the chapter's system")
    add("--form", choices=FORMS, help="as in `lm train` (default: what the chapter trains)")
    add("--impl", choices=IMPLEMENTATIONS, nargs="+", default=list(IMPLEMENTATIONS),
        help="which to compare (default: all)")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=[0], metavar="N",
        help="a run of each for every seed; means are over them (default: 0)")  # fmt: skip
    add("--epochs", type=positive, metavar="N", help="default: as the chapter")
    add("--text", type=Path, action="append", default=[], metavar="FILE",
        help="a UTF-8 text in place of The Time Machine")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="default: out/lm/ROW-FORM")
    add("--fresh", action="store_true", help="train anew what DIR holds")
    add_place_options(made)


def run_compare(arguments: argparse.Namespace) -> int:
    """``lm compare``."""
    require_packages("lm compare", "tqdm", "matplotlib")
    changes = {"epochs": arguments.epochs} if arguments.epochs else {}
    form = arguments.form or ROWS[arguments.row].form
    recipe = recipe_of(arguments.row, form, **changes)
    names = [name for name in ORDER if name in arguments.impl]
    if not recipe.reset_after and "torch" in names:
        names.remove("torch")
        print("torch.nn has no GRU that resets before the product: compared with scratch.")
        names = [name for name in ("rnnfast", "scratch") if name in names]
    if not names:
        raise ValueError("nothing is left to compare")
    corpus, about = corpus_of(arguments.text, recipe)
    out = arguments.out or Path("out/lm") / f"{arguments.row}-{form}"
    seeds = " ".join(map(str, arguments.seeds))
    print(f"Row       {arguments.row}, {ROWS[arguments.row].title}, {form} form\n{about}")
    print(f"{describe(recipe, arguments.seeds[0])}\nSeeds     {seeds}\n{machine()}\n", flush=True)
    place = Place(arguments.device, arguments.bf16)
    series: list[list[TrainingRun]] = []
    for seed in arguments.seeds:
        runs = [TrainingRun(name, corpus, recipe, seed, place) for name in names]
        compare.share_weights(runs)
        folder = out / f"seed-{seed}"
        before = [_sample(run, arguments.row) for run in runs]
        arguments.out, arguments.resume = folder, _all_present(runs, folder)
        begin(runs, arguments)
        if not train_with_bar(runs, folder):
            return interrupted(runs, folder)
        write_results(runs, folder)
        _show(runs, before, arguments.row, recipe, seed)
        series.append(runs)
    findings = [check for runs in series for check in _agreement(runs)]
    if len(series) > 1:
        print(f"\nMeans over seeds {seeds}\n{means(series, _last(arguments.row))}")
    findings += closeness(series, _last(arguments.row))
    print("", *findings, "", f"Written to {out}", sep="\n")
    say(place, machine())
    failed = any(check.passed is False for check in findings)
    return EXIT_CHECK_FAILED if failed else EXIT_OK


def _last(row: str) -> int:
    return LAST.get(row, 5)


def _all_present(runs: Sequence[Run[Any]], folder: Path) -> bool:
    return all(compare.checkpoint_path(folder, run).is_file() for run in runs)


def _sample(run: TrainingRun, row: str) -> str:
    prefix, length = ROWS[row].prefix, ROWS[row].length
    if not prefix or any(character not in run.corpus.vocab for character in prefix):
        return ""
    return greedy(run.model, run.corpus.vocab, prefix, length)


def _show(
    runs: Sequence[TrainingRun], before: Sequence[str], row: str, recipe: Recipe, seed: int
) -> None:
    print(f"\n{runs[0].title}, seed {seed}\n{report.table(runs, _last(row))}\n")
    for run, untrained in zip(runs, before, strict=True):
        if untrained:
            print(f"{report.LABELS[run.implementation]}\n  untrained  {untrained}")
            print(f"  trained    {_sample(run, row)}", flush=True)


def _agreement(runs: Sequence[TrainingRun]) -> list[report.Check]:
    found = [report.agreement_check(run, runs[-1]) for run in runs[:-1]]
    if runs[0].recipe.sampling == "sequential":
        found += [report.perplexity_check(run) for run in runs]
    return found


def means(series: Sequence[Sequence[Run[Any]]], last: int) -> str:
    """Perplexities of the last epochs averaged over seeds; medians of speed over all of them."""
    validated = bool(series[0][0].history.validation)
    header = ["implementation", f"ppl, last {last}"]
    header += [f"validation, last {last}"] if validated else []
    rows = [[*header, *speed.HEADER]]
    references = [runs[-1] for runs in series]
    for runs in zip(*series, strict=True):
        histories = [run.history for run in runs]
        row = [report.LABELS[runs[0].implementation]]
        row.append(f"{_mean([h.mean_perplexity(last) for h in histories]):.3f}")
        row += [f"{_mean([h.mean_validation(last) for h in histories]):.3f}"] if validated else []
        rows.append([*row, *speed.columns(runs, references)])
    return report.aligned(rows)


def closeness(series: Sequence[Sequence[Run[Any]]], last: int) -> list[report.Check]:
    """Whether perplexity, averaged over seeds and the last epochs, is the reference's: within 2 %
    in training and 5 % in validation (training is chaotic, so single runs differ by more)."""
    found = []
    *others, reference = zip(*series, strict=True)
    validated = bool(series[0][0].history.validation)
    for runs in others:
        for what, allowed in (("training", 0.02), ("validation", 0.05)):
            if what == "validation" and not validated:
                continue
            ours, theirs = (
                _mean([
                    h.mean_perplexity(last) if what == "training" else h.mean_validation(last)
                    for h in (run.history for run in group)
                ])
                for group in (runs, reference)
            )  # fmt: skip
            names = [report.LABELS[group[0].implementation] for group in (runs, reference)]
            claim = (
                f"{names[0]}: mean {what} perplexity of {len(runs)} seeds, last {last} epochs, "
                f"within {allowed:.0%} of {names[1]}'s"
            )
            difference = ours / theirs - 1
            finding = f"{ours:.3f} against {theirs:.3f} ({difference:+.1%})"
            passed = abs(difference) <= allowed if len(runs) > 1 else None
            found.append(report.Check(claim, finding, passed))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
