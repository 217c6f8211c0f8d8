"""The options of ``mt`` that make a recipe: the chapter's, and changes to it."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .cli_common import key_value, positive
from .model import CELLS
from .mt_train import TranslationRecipe
from .pairs import PairCorpus


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field of `TranslationRecipe`; each left out is the chapter's."""
    group = parser.add_argument_group("recipe", "each left out is the chapter's")
    add = group.add_argument
    add("--pairs-file", type=Path, metavar="FILE",
        help="UTF-8 lines 'source<TAB>target', or a zip of them (fra-eng.zip)")  # fmt: skip
    add("--pairs", type=positive, metavar="N", help="read the first N pairs (641)")
    add("--train-pairs", type=positive, metavar="N", help="train on the first N of them (512)")
    add("--num-steps", type=positive, metavar="T", help="words of a sentence, cut or padded (9)")
    add("--min-freq", type=positive, metavar="N", help="rarer words read as <unk> (2)")
    add("--epochs", type=positive, metavar="N", help="passes over the data (30)")
    add("--batch-size", type=positive, metavar="B", help="pairs of a minibatch (128)")
    add("--learning-rate", "--lr", type=float, metavar="X", help="of the optimiser (0.005)")
    add("--max-norm", "--clip", type=float, metavar="X", help="clip gradients; 0: don't (1)")
    add("--optimizer", metavar="NAME", help="a class of torch.optim (Adam)")
    add("--optimizer-option", dest="optimizer_options", type=key_value, action="append",
        metavar="KEY=VALUE", help="its other arguments, such as weight_decay=0.01")  # fmt: skip
    add("--cell", choices=CELLS, help="the recurrent layers (GRU)")
    add("--embedding-size", type=positive, metavar="E", help="width of a word (256)")
    add("--hidden-size", type=positive, metavar="H", help="units of a layer (256)")
    add("--num-layers", type=positive, metavar="L", help="layers of either half (2)")
    add("--dropout", type=float, metavar="P", help="between layers (0.2)")
    add("--reads-lengths", action=argparse.BooleanOptionalAction,
        help="the encoder stops at a sentence's end (the chapter's does not)")  # fmt: skip


def recipe_from(arguments: argparse.Namespace) -> TranslationRecipe:
    """The recipe that the options ask for."""
    changes: dict[str, Any] = {
        field.name: value
        for field in fields(TranslationRecipe)
        if (value := getattr(arguments, field.name)) is not None
    }
    if "optimizer_options" in changes:
        changes["optimizer_options"] = dict(changes["optimizer_options"])
    return replace(TranslationRecipe(), **changes)


def describe(recipe: TranslationRecipe, corpus: PairCorpus, seed: int) -> str:
    """The data, the model and how it is trained, in words."""
    return (
        f"Pairs     {corpus.title}\n"
        f"          {corpus.train_pairs} to train on, {len(corpus.validation_sentences())} held "
        f"back; {len(corpus.source_vocab)} and {len(corpus.target_vocab)} kinds of words\n"
        f"Model     encoder and decoder: embedding {recipe.embedding_size} -> {recipe.num_layers} "
        f"x {recipe.cell}, {recipe.hidden_size} hidden, dropout {recipe.dropout:g}\n"
        f"Training  {recipe.epochs} epochs of minibatches of {recipe.batch_size}, "
        f"{recipe.num_steps} words, {recipe.optimizer} {recipe.learning_rate:g}, gradient norm "
        f"{f'clipped to {recipe.max_norm:g}' if recipe.max_norm else 'not clipped'}, seed {seed}"
    )
