"""What the commands share: options, errors, the progress bar, going on from checkpoints."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import compare, data, report
from .checkpoint import CheckpointError
from .corpus import Corpus
from .history import Diverged
from .place import Place
from .recipes import Recipe
from .run import Run

EXIT_OK, EXIT_CHECK_FAILED, EXIT_CANNOT_RUN, EXIT_INTERRUPTED = 0, 1, 2, 130

ENVIRONMENT = (
    "Environment: RNNFAST_DATA names a folder with {file}, RNNFAST_CACHE the folder for downloads "
    "(~/.cache/rnnfast), RNNFAST_OFFLINE=1 forbids downloads. Exit status: 0 fine, 1 a check "
    "failed, 2 it could not run (the message says why), 130 interrupted and saved."
)


class MissingPackage(RuntimeError):
    """A package of the ``text`` extra is not installed."""


def require_packages(who: str, *names: str) -> None:
    """Raise MissingPackage, saying how to install them, unless packages ``names`` are there."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"{who} needs {' and '.join(missing)}: pip install 'rnnfast[text]' (in a checkout: "
            "make setup)"
        )


def reporting(command: str, action: Callable[[], int]) -> int:
    """The exit status of ``action``; what the user can mend is printed as one message, status 2."""
    try:
        return action()
    except (
        MissingPackage,
        data.DataUnavailable,
        CheckpointError,
        compare.CannotResume,
        Diverged,
        ValueError,
        OSError,
    ) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch on ``count`` CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def positive(text: str) -> int:
    """An option's value that is a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def key_value(text: str) -> tuple[str, Any]:
    """An option's value such as ``momentum=0.9``: a number, true or false, else a word."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"must look like momentum=0.9, got {text!r}")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    try:
        return key, float(value)
    except ValueError:
        return key, value


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """--device, --bf16, --threads."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: %(default)s")
    group.add_argument("--bf16", action="store_true", help="compute in bfloat16 (autocast)")
    group.add_argument("--threads", type=positive, default=2, metavar="N",
                       help="CPU threads for torch (default: %(default)s)")  # fmt: skip


def add_run_options(parser: argparse.ArgumentParser, out: str) -> None:
    """--out, --resume, --fresh, --save-every, --tensorboard."""
    group = parser.add_argument_group("files")
    group.add_argument("--out", type=Path, default=Path(out), metavar="DIR",
                       help="folder for what it writes (default: %(default)s)")  # fmt: skip
    group.add_argument("--save-every", type=positive, metavar="N",
                       default=compare.SAVE_EVERY_EPOCHS,
                       help="epochs between checkpoints (default: %(default)s)")  # fmt: skip
    group.add_argument("--tensorboard", action="store_true",
                       help="also log to DIR/tensorboard")  # fmt: skip
    start = group.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true",
                       help="go on from the checkpoint in DIR, finished or not (with a larger "
                            "--epochs: train on); fail where there is none")  # fmt: skip
    start.add_argument("--fresh", action="store_true",
                       help="start anew and replace what DIR holds (default: go on with an "
                            "unfinished run, start anew after a finished one)")  # fmt: skip


def begin(runs: Sequence[Run[Any]], arguments: argparse.Namespace) -> None:
    """Make the folder and go on from its checkpoints, as --resume and --fresh say."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.fresh:
        return
    if arguments.resume:
        compare.resume_all(runs, out)
    elif not compare.resume_unfinished(runs, out):
        return
    say(runs[0].place, f"Resuming from {out}, epochs done: {compare.epochs_done(runs)}")


def say(place: Place, *lines: str) -> None:
    """Print, in the process that leads."""
    if place.leads:
        print(*lines, sep="\n", flush=True)


def train_with_bar(
    runs: Sequence[Run[Any]],
    out: Path,
    save_every: int = compare.SAVE_EVERY_EPOCHS,
    after: Callable[[Run[Any], Callable[[str], None]], None] | None = None,
) -> bool:
    """`compare.train_in_turns` under a progress bar with perplexity and speed of the last epoch.

    ``after(run, write)`` is called after each epoch; ``write`` prints a line above the bar.
    """
    from tqdm import tqdm

    total = sum(max(run.epochs, run.epoch) for run in runs)
    done = sum(run.epoch for run in runs)
    hidden = not runs[0].place.leads
    with tqdm(total=total, initial=done, unit="epoch", disable=hidden) as bar:

        def progress(run: Run[Any]) -> None:
            history = run.history
            speed = history.tokens[-1] / history.seconds[-1]
            held_out = f" ({history.validation[-1]:.2f})" if history.validation else ""
            bar.set_postfix_str(
                f"{report.LABELS[run.implementation]}: ppl {history.perplexity[-1]:.2f}{held_out}, "
                f"{speed:,.0f} tokens/s",
                refresh=False,
            )
            bar.update()
            if after is not None and run.place.leads:
                after(run, bar.write)

        return compare.train_in_turns(runs, out, progress, save_every)


def interrupted(runs: Sequence[Run[Any]], out: Path) -> int:
    """What to say and return after Ctrl-C."""
    say(
        runs[0].place,
        f"\nInterrupted; saved in {out}, epochs done: {compare.epochs_done(runs)}.",
        "The same command goes on from there.",
    )
    return EXIT_INTERRUPTED


def write_results(runs: Sequence[Run[Any]], out: Path) -> None:
    """curves.csv, curves.png, curves.svg and, of several runs, first_steps.csv."""
    report.write_curves(out / "curves.csv", runs)
    report.write_plots(out, runs)
    if len(runs) > 1:
        report.write_first_steps(out / "first_steps.csv", runs)


def corpus_of(paths: Sequence[Path], recipe: Recipe) -> tuple[Corpus, str]:
    """The text of ``paths`` one after another, or The Time Machine, and a line about it.

    Raises:
        ValueError: a file is not UTF-8, or holds no text. OSError: it cannot be read.
        DataCorrupt: the user's own copy of The Time Machine is corrupt.
    """
    note = ""
    if paths:
        content = "\n".join(data.read_text(path) for path in paths)
        name = ", ".join(str(path) for path in paths)
        text = data.Text(
            title=" + ".join(path.name for path in paths), content=content, origin=name
        )
    else:
        text, missing = data.load_or_standin(data.TIME_MACHINE)
        note = "" if missing is None else f"{missing}\nGoing on with a stand-in text.\n"
    corpus = Corpus.from_text(
        text,
        cleaning=recipe.cleaning,
        max_tokens=recipe.tokens_needed(),
        min_freq=recipe.min_freq,
    )
    return corpus, (
        f"{note}Text      {text.title}\n          from {text.origin}\n"
        f"          first {len(corpus.tokens):,} of {corpus.total_tokens:,} characters, "
        f"{len(corpus.vocab)} kinds"
    )


def machine() -> str:
    """Threads, torch and how busy the machine is, for whoever reads tokens/s."""
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"Machine   CPU threads: {torch.get_num_threads()} of {os.cpu_count()}, "
        f"torch {torch.__version__}{load}"
    )
