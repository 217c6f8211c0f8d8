"""The demo: one language model, trained with rnnfast and with torch.nn, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import compare, data, report, speed
from .cli_common import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    interrupted,
    positive,
    reporting,
    require_packages,
    threads,
    train_with_bar,
    write_results,
)
from .corpus import Corpus
from .generate import greedy
from .train import Recipe, TrainingRun

BOTH = ("rnnfast", "torch")
PREFIX = "time traveller"
GENERATED_CHARACTERS = 50


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m rnnfast demo",
        description=(
            "Train a character language model (one-hot -> RNN, 256 hidden -> linear) on The Time "
            "Machine, once with rnnfast and once with torch.nn, from the same weights and in the "
            "same order of the data. Prints perplexity and speed of both, the text that each "
            "writes before and after training, and checks that both learn the same. Writes "
            "checkpoints, curves.csv, first_steps.csv, curves.png and curves.svg."
        ),
        epilog=(
            "Ctrl-C saves; the same command then goes on where it stopped and ends with the same "
            "perplexities as a run without a stop. Environment: RNNFAST_DATA names a folder with "
            "timemachine.txt, RNNFAST_CACHE the folder for downloads (~/.cache/rnnfast), "
            "RNNFAST_OFFLINE=1 forbids downloads. Exit status: 0 fine, 1 a check failed, 2 it "
            "could not run, 130 interrupted."
        ),
    )
    add = made.add_argument
    add("--epochs", type=positive, default=Recipe.epochs, metavar="N",
        help="epochs to train, of 8 minibatches each (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N",
        help="settles the weights and the order of the data (default: %(default)s)")  # fmt: skip
    add("--impl", choices=["both", *BOTH], default="both",
        help="what to train with (default: %(default)s)")  # fmt: skip
    add("--out", type=Path, default=Path("out/demo"), metavar="DIR",
        help="folder for what it writes (default: %(default)s)")  # fmt: skip
    add("--threads", type=positive, default=2, metavar="N",
        help="CPU threads for torch (default: %(default)s)")  # fmt: skip
    start = made.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true",
        help="go on from the checkpoints in --out, finished or not (with a larger --epochs: "
             "train on); fail where there are none")  # fmt: skip
    start.add_argument(
        "--fresh", action="store_true",
        help="start anew and replace what --out holds (default: go on with an unfinished run, "
             "start anew after a finished one)")  # fmt: skip
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo with the options of `parser`; returns the exit status documented there."""
    arguments = parser().parse_args(argv)

    def action() -> int:
        require_packages("the demo", "tqdm", "matplotlib")
        with threads(arguments.threads):
            return _run(arguments)

    return reporting("demo", action)


def _run(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    text, missing = data.load_or_standin(data.TIME_MACHINE)
    if missing is not None:
        print(f"{missing}\nGoing on with a stand-in text.\n")
    recipe = Recipe(epochs=arguments.epochs)
    corpus = Corpus.from_text(text, cleaning=recipe.cleaning, max_tokens=recipe.train_tokens)
    names = list(BOTH) if arguments.impl == "both" else [arguments.impl]
    runs = compare.make_runs(names, corpus, recipe, arguments.seed)
    _describe(text, runs)
    untrained = [_sample(run) for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    if _resume(runs, arguments):
        print(f"Resuming from {out}, epochs done: {compare.epochs_done(runs)}", flush=True)
    watch = speed.Watch()
    if not train_with_bar(runs, out):
        return interrupted(runs, out)
    others = watch.others()
    write_results(runs, out)
    return _conclude(runs, untrained, others, out)


def _resume(runs: Sequence[TrainingRun], arguments: argparse.Namespace) -> bool:
    if arguments.fresh:
        return False
    if arguments.resume:
        compare.resume_all(runs, arguments.out)
        return True
    return compare.resume_unfinished(runs, arguments.out)


def _describe(text: data.Text, runs: Sequence[TrainingRun]) -> None:
    run = runs[-1]
    recipe, corpus = run.recipe, run.corpus
    print(f"Text      {text.title}")
    print(f"          from {text.origin}")
    print(
        f"          first {len(corpus.tokens):,} of {corpus.total_tokens:,} characters, "
        f"{len(corpus.vocab)} kinds"
    )
    print(f"Model     one-hot -> {recipe.cell}, {recipe.hidden_size} hidden -> linear")
    print(
        f"Training  {recipe.epochs} epochs, minibatches of {recipe.batch_size} x "
        f"{recipe.num_steps}, SGD {recipe.learning_rate:g}, gradient norm clipped to "
        f"{recipe.max_norm:g}, seed {run.seed}"
    )
    print(f"Machine   CPU, threads: {torch.get_num_threads()}, torch {torch.__version__}")
    for run in runs:
        if run.implementation == "rnnfast":
            print("rnnfast   " + _backend(run).replace("\n", "\n          "))
    print(flush=True)


def _backend(run: TrainingRun) -> str:
    """Which of rnnfast's backends this run will use, and why, in rnnfast's own words."""
    import rnnfast

    sizes = (run.recipe.num_steps, run.recipe.batch_size)
    tokens = torch.zeros(sizes, dtype=torch.int64, device=next(run.model.parameters()).device)
    layer: Any = run.model.layer
    return str(rnnfast.explain(layer, tokens))


def _sample(run: TrainingRun) -> str:
    return greedy(run.model, run.corpus.vocab, PREFIX, GENERATED_CHARACTERS)


def _conclude(
    runs: Sequence[TrainingRun], untrained: Sequence[str], others: float | None, out: Path
) -> int:
    print(f"\n{runs[-1].corpus.title}\n{report.table(runs)}\n")
    for note in speed.notes(runs, others):
        print(f"{note}\n")
    for run, before in zip(runs, untrained, strict=True):
        print(f"{report.LABELS[run.implementation]}\n  untrained  {before}")
        print(f"  trained    {_sample(run)}")
    print()
    findings = report.checks(runs)
    for finding in findings:
        print(finding)
    print(f"\nWritten to {out}: {', '.join(sorted(path.name for path in out.glob('[!.]*')))}")
    failed = any(finding.passed is False for finding in findings)
    return EXIT_CHECK_FAILED if failed else EXIT_OK
