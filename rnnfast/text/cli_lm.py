"""``python -m rnnfast lm``: language models on a text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, data, report
from .checkpoint import CheckpointError
from .cli_common import (
    ENVIRONMENT,
    EXIT_OK,
    add_place_options,
    add_run_options,
    begin,
    corpus_of,
    interrupted,
    machine,
    positive,
    reporting,
    require_packages,
    say,
    threads,
    train_with_bar,
    write_results,
)
from .corpus import Corpus
from .generate import generate, greedy, stream
from .history import perplexity
from .lm_compare import add_compare, run_compare
from .lm_eval import by_position
from .lm_options import add_recipe_options, describe, recipe_from
from .logs import TensorBoard
from .model import IMPLEMENTATIONS, RNNLM, ModelSpec, load_weights
from .place import place_of
from .recipes import ROWS, Recipe
from .run import Run
from .sampling import Sampler
from .sine import add_sine, run_sine
from .train import TrainingRun
from .vocab import Vocabulary


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m rnnfast lm",
        description="Train, compare and use character language models.",
        epilog=ENVIRONMENT.format(file="timemachine.txt"),
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a model",
        description="Train one model on a text, by default the chapter's (row S2) on The Time "
        "Machine. Writes a checkpoint, curves.csv, curves.png and curves.svg. Ctrl-C saves; the "
        "same command goes on, to the same numbers as a run without a stop. Under torchrun every "
        "process trains on its own minibatch and they share their gradients.",
    )
    add_recipe_options(train)
    _add_text(train)
    _add_impl(train)
    train.add_argument("--seed", type=int, default=0, metavar="N",
                       help="settles weights, data order, dropout (default: 0)")  # fmt: skip
    train.add_argument("--sample-every", type=positive, metavar="N",
                       help="print what the model writes after every N epochs")  # fmt: skip
    add_place_options(train)
    add_run_options(train, "out/lm")
    _add_generate(commands.add_parser(
        "generate", help="write text with a trained model",
        description="Go on from one or several prefixes. The text appears as it is written where "
                    "there is one prefix. By default the likeliest character is always taken.",
    ))  # fmt: skip
    evaluate = commands.add_parser(
        "eval", help="perplexity of a trained model",
        description="Perplexity of a model on a text, a window at every position, each from a zero "
                    "state: in all, and by how many characters the model has read before.",
    )  # fmt: skip
    evaluate.add_argument("checkpoint", type=Path, help="what `lm train` wrote, such as rnnfast.pt")
    _add_text(evaluate)
    _add_impl(evaluate, "that which trained it")
    evaluate.add_argument("--skip", type=int, default=0, metavar="N",
                          help="leave out the first N characters (default: 0)")  # fmt: skip
    evaluate.add_argument("--tokens", type=positive, default=5000, metavar="N",
                          help="windows to read (default: %(default)s)")  # fmt: skip
    evaluate.add_argument("--num-steps", type=positive, metavar="T",
                          help="characters of a window (default: as in training)")  # fmt: skip
    add_place_options(evaluate)
    add_compare(commands)
    add_sine(commands)
    return made


def _add_text(made: argparse.ArgumentParser) -> None:
    made.add_argument("--text", type=Path, action="append", default=[], metavar="FILE",
                      help="a UTF-8 text in place of The Time Machine; several are read one after "
                           "another")  # fmt: skip


def _add_impl(made: argparse.ArgumentParser, default: str = "") -> None:
    made.add_argument("--impl", choices=IMPLEMENTATIONS, default=None if default else "rnnfast",
                      help="what computes the recurrent layers: a Python loop, torch.nn or rnnfast "
                           f"(default: {default or 'rnnfast'})")  # fmt: skip


def _add_generate(made: argparse.ArgumentParser) -> None:
    add = made.add_argument
    add("checkpoint", type=Path, help="what `lm train` wrote, such as out/lm/rnnfast.pt")
    add("--prefix", action="append", metavar="TEXT",
        help="what to go on from; several are a batch (default: 'time traveller')")  # fmt: skip
    add("--length", type=int, default=50, metavar="N", help="characters (default: %(default)s)")
    add("--temperature", type=float, metavar="X",
        help="draw from p^(1/X) in place of taking the likeliest")  # fmt: skip
    add("--alpha", type=float, metavar="X", help="draw from p^X")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest that add up to P")
    add("--stop", action="append", default=[], metavar="C", help="end before this character")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: %(default)s)")
    _add_impl(made, "that which trained it")
    add_place_options(made)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status that `parser` documents."""
    arguments = parser().parse_args(argv)
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "train": run_train,
        "generate": run_generate,
        "eval": run_eval,
        "compare": run_compare,
        "sine": run_sine,
    }

    def action() -> int:
        with threads(arguments.threads):
            return actions[arguments.command](arguments)

    return reporting(f"lm {arguments.command}", action)


def run_train(arguments: argparse.Namespace) -> int:
    """``lm train``."""
    require_packages("lm train", "tqdm", "matplotlib")
    if arguments.tensorboard:
        require_packages("--tensorboard", "tensorboard")
    recipe = recipe_from(arguments)
    corpus, about = corpus_of(arguments.text, recipe)
    with place_of(arguments.device, arguments.bf16) as place:
        run = TrainingRun(arguments.impl, corpus, recipe, arguments.seed, place)
        say(place, about, describe(recipe, arguments.seed), machine(), "")
        begin([run], arguments)
        log = None
        if arguments.tensorboard and place.leads:
            log = TensorBoard(arguments.out / "tensorboard", run.epoch)
        row = ROWS[arguments.row]

        def after(run: Run[Any], write: Callable[[str], None]) -> None:
            if log is not None:
                log.add(run)
            if arguments.sample_every and run.epoch % arguments.sample_every == 0:
                write(f"epoch {run.epoch}: {_sample(run.model, corpus, recipe, row.prefix)}")

        finished = train_with_bar([run], arguments.out, arguments.save_every, after)
        if log is not None:
            log.close()
        if not finished:
            return interrupted([run], arguments.out)
        if place.leads:
            write_results([run], arguments.out)
            print(f"\n{corpus.title}\n{report.table([run])}\n")
            print(_sample(run.model, corpus, recipe, row.prefix, row.length))
            print(f"\nWritten to {arguments.out}")
    return EXIT_OK


def _sample(model: RNNLM, corpus: Corpus, recipe: Recipe, prefix: str, length: int = 50) -> str:
    if recipe.bidirectional:
        return "(a model that reads from both ends writes no text)"
    if any(character not in corpus.vocab for character in prefix):
        prefix = corpus.vocab.decode(corpus.tokens[:10])
    return greedy(model, corpus.vocab, prefix, length)


def load_model(path: Path, implementation: str | None) -> tuple[RNNLM, Vocabulary, dict[str, Any]]:
    """The model in a checkpoint, its vocabulary, and all the checkpoint holds.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another kind of model.
        ValueError: ``implementation`` cannot compute this model.
    """
    payload = checkpoint.load(path)
    if payload.get("kind") != "language model":
        raise CheckpointError(f"{path} holds no language model, but: {payload.get('kind')}")
    model = RNNLM.build(
        implementation or payload["implementation"], ModelSpec(**payload["model_spec"])
    )
    load_weights(model, payload["model"])
    return model.eval(), Vocabulary.from_list(payload["vocabulary"]), payload


def run_generate(arguments: argparse.Namespace) -> int:
    """``lm generate``."""
    with place_of(arguments.device, arguments.bf16) as place:
        model, vocab, _ = load_model(arguments.checkpoint, arguments.impl)
        model.to(place.device)
        prefixes = arguments.prefix or ["time traveller"]
        unknown = sorted({c for prefix in prefixes for c in prefix if c not in vocab})
        if unknown:
            print(f"lm generate: read as <unk>: {' '.join(map(repr, unknown))}", file=sys.stderr)
        options: dict[str, Any] = {
            "sampler": _sampler(arguments),
            "stop": arguments.stop,
            "generator": torch.Generator().manual_seed(arguments.seed),
        }
        with place.precision():
            if len(prefixes) > 1:
                texts = generate(model, vocab, prefixes, arguments.length, **options)
                print(*texts, sep="\n")
                return EXIT_OK
            pieces = stream(model, vocab, prefixes, arguments.length, **options)
            print(prefixes[0], end="", flush=True)
            for (piece,) in pieces:
                print(piece, end="", flush=True)
        print()
    return EXIT_OK


def _sampler(arguments: argparse.Namespace) -> Sampler:
    """Greedy unless an option asks for drawing."""
    names = ("temperature", "alpha", "top_k", "top_p")
    given = {name: getattr(arguments, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return Sampler(**given) if given else Sampler(temperature=0.0)


def run_eval(arguments: argparse.Namespace) -> int:
    """``lm eval``."""
    with place_of(arguments.device, arguments.bf16) as place:
        model, vocab, payload = load_model(arguments.checkpoint, arguments.impl)
        model.to(place.device)
        num_steps = arguments.num_steps or payload["recipe"]["num_steps"]
        if arguments.text:
            content = "\n".join(data.read_text(path) for path in arguments.text)
            text = data.Text(", ".join(map(str, arguments.text)), content, "")
        else:
            text = data.load(data.TIME_MACHINE)
        corpus = Corpus.from_text(text, cleaning=payload["recipe"]["cleaning"], vocab=vocab)
        tokens = corpus.tokens[arguments.skip : arguments.skip + arguments.tokens + num_steps]
        losses = by_position(model, tokens, num_steps, place)
        print(f"{text.title}, {len(tokens) - num_steps:,} windows of {num_steps} characters")
        print(f"perplexity {perplexity(float(losses.mean()), 1):.3f}\n\nafter  perplexity")
        position = 1
        while position <= num_steps:
            value = perplexity(float(losses[position - 1]), 1)
            print(f"{position:5d}  {value:.3f}")
            position *= 2
    return EXIT_OK
