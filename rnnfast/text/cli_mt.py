"""``python -m rnnfast mt``: translation from English to French, or of any pairs of sentences."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint, compare, data, report
from .bleu import bleu, sacrebleu_of
from .checkpoint import CheckpointError
from .cli_common import (
    ENVIRONMENT,
    EXIT_CHECK_FAILED,
    EXIT_OK,
    add_place_options,
    add_run_options,
    begin,
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
from .logs import TensorBoard
from .model import IMPLEMENTATIONS, load_weights
from .mt_options import add_recipe_options, describe, recipe_from
from .mt_train import TranslationRecipe, TranslationRun
from .pairs import FRA_ENG, PairCorpus, clean, read_pairs, words
from .place import place_of
from .report import LABELS
from .run import Run
from .seq2seq import Seq2Seq, Seq2SeqSpec
from .translate import Translator
from .vocab import Vocabulary

EXAMPLES = {
    "go .": "va !",
    "i lost .": "j'ai perdu .",
    "he's calm .": "il est calme .",
    "i'm home .": "je suis chez moi .",
}
"""The chapter's sentences and the translations it scores against."""

ORDER = ("scratch", "rnnfast", "torch")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m rnnfast mt",
        description="Train, compare and use translation models: an encoder and a decoder of "
        "recurrent layers (the chapter Sequence-to-Sequence Learning, row S7).",
        epilog=ENVIRONMENT.format(file="fra-eng.zip"),
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train", help="train a model",
        description="Train one model, by default the chapter's on its 641 pairs. Writes a "
                    "checkpoint, curves.csv, curves.png and curves.svg. Ctrl-C saves; the same "
                    "command goes on. Under torchrun every process trains on its own minibatch.",
    )  # fmt: skip
    add_recipe_options(train)
    _add_impl(train)
    train.add_argument("--seed", type=int, default=0, metavar="N",
                       help="settles weights, data order, dropout (default: 0)")  # fmt: skip
    add_place_options(train)
    add_run_options(train, "out/mt")
    translate = commands.add_parser(
        "translate", help="translate sentences",
        description="Translate sentences, greedily or with a beam.",
    )  # fmt: skip
    translate.add_argument("checkpoint", type=Path, help="what `mt train` wrote")
    translate.add_argument("sentences", nargs="+", metavar="SENTENCE")
    evaluate = commands.add_parser(
        "eval", help="BLEU of a trained model",
        description="Translate the sentences that were held back in training and score them: the "
                    "mean of the chapter's BLEU, and sacreBLEU of the whole set.",
    )  # fmt: skip
    evaluate.add_argument("checkpoint", type=Path, help="what `mt train` wrote")
    evaluate.add_argument("--pairs-file", type=Path, metavar="FILE",
                          help="the pairs it was trained on (default: fra-eng.zip)")  # fmt: skip
    evaluate.add_argument("-k", type=positive, default=2, metavar="K",
                          help="longest run of words in the mean BLEU (default: 2)")  # fmt: skip
    evaluate.add_argument("--show", type=int, default=5, metavar="N",
                          help="print N translations (default: 5)")  # fmt: skip
    for command in (translate, evaluate):
        command.add_argument("--beam", type=positive, default=1, metavar="W",
                             help="width of the beam (default: 1, greedy)")  # fmt: skip
        _add_impl(command, "that which trained it")
        add_place_options(command)
    both = commands.add_parser(
        "compare", help="scratch, torch.nn and rnnfast side by side",
        description="Train the model with every implementation, from the same weights and in the "
                    "same order of the data, in turns. Prints losses, BLEU, tokens/s and ratios.",
    )  # fmt: skip
    add_recipe_options(both)
    both.add_argument("--impl", choices=IMPLEMENTATIONS, nargs="+", default=list(IMPLEMENTATIONS),
                      help="default: all")  # fmt: skip
    both.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N",
                      help="a run of each for every seed (default: 0)")  # fmt: skip
    add_place_options(both)
    add_run_options(both, "out/mt/S7")
    return made


def _add_impl(made: argparse.ArgumentParser, default: str = "") -> None:
    made.add_argument("--impl", choices=IMPLEMENTATIONS, default=None if default else "rnnfast",
                      help="what computes the recurrent layers: a Python loop, torch.nn or rnnfast "
                           f"(default: {default or 'rnnfast'})")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status that `parser` documents."""
    arguments = parser().parse_args(argv)
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "train": run_train,
        "translate": run_translate,
        "eval": run_eval,
        "compare": run_compare,
    }

    def action() -> int:
        with threads(arguments.threads):
            return actions[arguments.command](arguments)

    return reporting(f"mt {arguments.command}", action)


def corpus_of(path: Path | None, recipe: TranslationRecipe) -> PairCorpus:
    """The pairs in ``path``, or the chapter's; raises what `read_pairs` and `data.find` raise."""
    title = FRA_ENG.title if path is None else path.name
    pairs = read_pairs(data.find(FRA_ENG) if path is None else path, recipe.pairs)
    return PairCorpus.from_pairs(
        pairs,
        train_pairs=min(recipe.train_pairs, len(pairs)),
        num_steps=recipe.num_steps,
        min_freq=recipe.min_freq,
        title=title,
    )


def run_train(arguments: argparse.Namespace) -> int:
    """``mt train``."""
    require_packages("mt train", "tqdm", "matplotlib")
    if arguments.tensorboard:
        require_packages("--tensorboard", "tensorboard")
    recipe = recipe_from(arguments)
    corpus = corpus_of(arguments.pairs_file, recipe)
    with place_of(arguments.device, arguments.bf16) as place:
        run = TranslationRun(arguments.impl, corpus, recipe, arguments.seed, place)
        say(place, describe(recipe, corpus, arguments.seed), machine(), "")
        begin([run], arguments)
        log = None
        if arguments.tensorboard and place.leads:
            log = TensorBoard(arguments.out / "tensorboard", run.epoch)

        def after(run: Run[Any], write: Callable[[str], None]) -> None:
            if log is not None:
                log.add(run)

        finished = train_with_bar([run], arguments.out, arguments.save_every, after)
        if log is not None:
            log.close()
        if not finished:
            return interrupted([run], arguments.out)
        if place.leads:
            write_results([run], arguments.out)
            print(f"\n{corpus.title}\n{report.table([run], 1)}\n")
            _show_examples(run.translator(), corpus)
            print(f"\nWritten to {arguments.out}")
    return EXIT_OK


def _examples(corpus: PairCorpus) -> dict[str, str]:
    """The chapter's sentences where these are its pairs, else the first that were held back."""
    if corpus.title == FRA_ENG.title:
        return EXAMPLES
    held_back = corpus.validation_sentences() or corpus.sentences
    return {clean(source): clean(target) for source, target in held_back[:4]}


def _show_examples(translator: Translator, corpus: PairCorpus) -> list[float]:
    """Print translations with the chapter's BLEU, which are returned."""
    wanted = _examples(corpus)
    found = translator.greedy(list(wanted))
    scores = [bleu(text, label) for text, label in zip(found, wanted.values(), strict=True)]
    for source, text, score in zip(wanted, found, scores, strict=True):
        print(f"  {source} => {text}, bleu {score:.3f}")
    return scores


def load_translator(path: Path, implementation: str | None) -> tuple[Translator, dict[str, Any]]:
    """What translates with the model in a checkpoint, and all the checkpoint holds.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or one of another kind of model.
    """
    payload = checkpoint.load(path)
    if payload.get("kind") != "translation":
        raise CheckpointError(f"{path} holds no translation model, but: {payload.get('kind')}")
    spec = Seq2SeqSpec(**payload["model_spec"])
    model = Seq2Seq(implementation or payload["implementation"], spec)
    load_weights(model, payload["model"])
    source, target = (
        Vocabulary.from_list(payload[f"{side}_vocabulary"]) for side in ("source", "target")
    )
    return Translator(model.eval(), source, target, payload["recipe"]["num_steps"]), payload


def _translate(translator: Translator, sentences: Sequence[str], beam: int) -> list[str]:
    if beam == 1:
        return translator.greedy(sentences)
    return [translator.beam(sentence, beam) for sentence in sentences]


def run_translate(arguments: argparse.Namespace) -> int:
    """``mt translate``."""
    with place_of(arguments.device, arguments.bf16) as place:
        translator, _ = load_translator(arguments.checkpoint, arguments.impl)
        translator.model.to(place.device)
        with place.precision():
            found = _translate(translator, arguments.sentences, arguments.beam)
        for sentence, text in zip(arguments.sentences, found, strict=True):
            unknown = [word for word in words(sentence) if word not in translator.source_vocab]
            note = f"   (read as <unk>: {' '.join(unknown)})" if unknown else ""
            print(f"{sentence} => {text}{note}")
    return EXIT_OK


def run_eval(arguments: argparse.Namespace) -> int:
    """``mt eval``."""
    require_packages("mt eval", "sacrebleu")
    with place_of(arguments.device, arguments.bf16) as place:
        translator, payload = load_translator(arguments.checkpoint, arguments.impl)
        translator.model.to(place.device)
        corpus = corpus_of(arguments.pairs_file, TranslationRecipe(**payload["recipe"]))
        if corpus.fingerprint() != payload["data_sha1"]:
            raise ValueError(f"{arguments.checkpoint} was trained on other pairs than these")
        held_back = corpus.validation_sentences()
        if not held_back:
            raise ValueError("no pairs were held back in training")
        with place.precision():
            found = _translate(translator, [source for source, _ in held_back], arguments.beam)
    labels = [" ".join(words(target)) for _, target in held_back]
    scores = [bleu(text, label, arguments.k) for text, label in zip(found, labels, strict=True)]
    for (source, _), text, label, score in list(zip(held_back, found, labels, scores, strict=True))[
        : arguments.show
    ]:
        print(f"{clean(source)} => {text}   ({label}), bleu {score:.3f}")
    print(f"\n{len(labels)} pairs that were held back")
    print(f"mean of the chapter's BLEU (k = {arguments.k})   {sum(scores) / len(scores):.3f}")
    print(f"sacreBLEU of the whole set (0 to 100)  {sacrebleu_of(found, labels):.2f}")
    return EXIT_OK


def run_compare(arguments: argparse.Namespace) -> int:
    """``mt compare``."""
    require_packages("mt compare", "tqdm", "matplotlib")
    recipe = recipe_from(arguments)
    corpus = corpus_of(arguments.pairs_file, recipe)
    out: Path = arguments.out
    print(f"{describe(recipe, corpus, arguments.seeds[0])}\n{machine()}\n", flush=True)
    findings = []
    with place_of(arguments.device, arguments.bf16) as place:
        for seed in arguments.seeds:
            names = [name for name in ORDER if name in arguments.impl]
            runs = [TranslationRun(name, corpus, recipe, seed, place) for name in names]
            compare.share_weights(runs)
            arguments.out = out / f"seed-{seed}"
            paths = [compare.checkpoint_path(arguments.out, run) for run in runs]
            arguments.resume = all(path.is_file() for path in paths)
            begin(runs, arguments)
            if not train_with_bar(runs, arguments.out, arguments.save_every):
                return interrupted(runs, arguments.out)
            write_results(runs, arguments.out)
            print(f"\nseed {seed}\n{report.table(runs, 1)}")
            for run in runs:
                print(LABELS[run.implementation])
                _show_examples(run.translator(), corpus)
            if recipe.dropout == 0:
                findings += [report.agreement_check(run, runs[-1]) for run in runs[:-1]]
    print("", *findings, f"Written to {out}", machine(), sep="\n")
    failed = any(check.passed is False for check in findings)
    return EXIT_CHECK_FAILED if failed else EXIT_OK
