"""Language models trained by rnnfast and by torch.nn side by side, a row of docs/seeds.md:

    python -m benchmarks.seeds [--row S2] [--seeds N …] [--epochs N] [--threads N]

writes more/training-S2.csv beside the results of the layers. Both start from the same weights and
take turns, an epoch each, as `python -m rnnfast lm compare` has it. Trained on The Time Machine
alone: there is no stand-in for it here.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rnnfast.text import compare, data, speed
from rnnfast.text.corpus import Corpus
from rnnfast.text.lm_compare import LAST
from rnnfast.text.recipes import ROWS, recipe_of
from rnnfast.text.run import Run

from . import records

IMPLEMENTATIONS = ("rnnfast", "torch")


@dataclass(frozen=True)
class Row:
    """A seed's run; perplexities are means over the last epochs, speeds medians over all."""

    seed: int
    epochs: int
    implementation: str
    perplexity: float
    validation: float  # NaN where the row has none
    tokens_per_s: float
    ratio: float  # of its speed to torch.nn's, epoch by epoch
    ratio_q1: float
    ratio_q3: float


def measure(row: str, epochs: int | None, seed: int) -> Iterator[Row]:
    """Raises DataUnavailable where the text can't be had."""
    recipe = recipe_of(row, ROWS[row].form, **({"epochs": epochs} if epochs else {}))
    corpus = Corpus.from_text(
        data.load(data.TIME_MACHINE),
        cleaning=recipe.cleaning,
        max_tokens=recipe.tokens_needed(),
        min_freq=recipe.min_freq,
    )
    runs = compare.make_runs(IMPLEMENTATIONS, corpus, recipe, seed)
    with tempfile.TemporaryDirectory() as folder:
        compare.train_in_turns(runs, Path(folder), lambda run: None)
    for run in runs:
        yield _row(run, runs[-1], LAST.get(row, 5), seed)


def _row(run: Run[Any], reference: Run[Any], last: int, seed: int) -> Row:
    history = run.history
    ratio = speed.Quartiles.of(speed.ratios(run, reference))
    return Row(
        seed,
        run.epoch,
        run.implementation,
        history.mean_perplexity(last),
        history.mean_validation(last) if history.validation else math.nan,
        speed.Quartiles.of(speed.tokens_per_second(history)).median,
        ratio.median,
        ratio.low,
        ratio.high,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds")
    parser.add_argument("--row", choices=list(ROWS), default="S2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="default: as the chapter")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    facts = records.facts("cpu", args.threads, row=args.row)
    rows = []
    for seed in args.seeds:
        for row in measure(args.row, args.epochs, seed):
            rows.append(row)
            print(row, flush=True)
    path = args.out or records.folder("cpu", args.threads) / f"training-{args.row}.csv"
    records.write(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
