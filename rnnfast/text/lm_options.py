"""The options of ``lm`` that make a recipe: a row of the chapters, and changes to it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from .cli_common import key_value, positive
from .corpus import CLEANINGS
from .model import CELLS, INITS, INPUTS
from .recipes import FORMS, OBJECTIVES, ROWS, SAMPLINGS, Recipe, recipe_of

ROWS_HELP = "; ".join(f"{name}: {row.title}" for name, row in ROWS.items())


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """--row, --form, and an option for every field of `Recipe`; each left out is the row's."""
    group = parser.add_argument_group("recipe", f"what is trained, and how ({ROWS_HELP})")
    add = group.add_argument
    add("--row", choices=list(ROWS), default="S2",
        help="the chapter's system to start from (default: %(default)s)")  # fmt: skip
    add("--form", choices=FORMS,
        help="scratch: N(0, 0.01²) weights and one bias, as the chapters write a model by hand; "
             "concise: a framework's layer (default: what the chapter trains)")  # fmt: skip
    add("--epochs", type=positive, metavar="N", help="passes over the data")
    add("--learning-rate", "--lr", type=float, metavar="X", help="of the optimiser")
    add("--max-norm", "--clip", type=float, metavar="X",
        help="clip all gradients together to this norm; 0: don't")  # fmt: skip
    add("--optimizer", metavar="NAME", help="a class of torch.optim, such as SGD or Adam")
    add("--optimizer-option", dest="optimizer_options", type=key_value, action="append",
        metavar="KEY=VALUE", help="its other arguments, such as momentum=0.9")  # fmt: skip
    add("--batch-size", type=positive, metavar="B", help="rows of a minibatch (of each process)")
    add("--num-steps", type=positive, metavar="T", help="characters of a row")
    add("--sampling", choices=SAMPLINGS,
        help="sequential: rows are read on from minibatch to minibatch, the state carried; "
             "random: windows in random order; every: a window at every position")  # fmt: skip
    add("--train-tokens", type=int, metavar="N",
        help="characters (with every: windows) to train on; 0: the whole text")  # fmt: skip
    add("--validation-tokens", type=int, metavar="N", help="as many after them to validate on")
    add("--objective", choices=OBJECTIVES,
        help="next: the next character; fill-in: hidden ones (for --bidirectional)")  # fmt: skip
    add("--cleaning", choices=list(CLEANINGS),
        help="letters only, by lines or the whole text; raw: every character")  # fmt: skip
    add("--min-freq", type=positive, metavar="N", help="rarer characters read as <unk>")
    model = parser.add_argument_group("model")
    add = model.add_argument
    add("--cell", choices=CELLS, help="the recurrent layer")
    add("--hidden-size", type=positive, metavar="H", help="units of a layer")
    add("--num-layers", type=positive, metavar="L", help="layers on top of one another")
    add("--dropout", type=float, metavar="P", help="between layers")
    add("--bidirectional", action=argparse.BooleanOptionalAction, help="read from both ends")
    add("--nonlinearity", choices=("tanh", "relu"), help="of the RNN")
    add("--reset-after", action=argparse.BooleanOptionalAction,
        help="the GRU resets after the product (torch.nn) or before it (chapter)")  # fmt: skip
    add("--input", choices=INPUTS, help="one-hot vectors, or learned embeddings")
    add("--embedding-size", type=positive, metavar="E", help="width of the embeddings")
    add("--init", choices=INITS, help="the framework's, or N(0, 0.01²) with zero biases")
    add("--one-bias", action=argparse.BooleanOptionalAction, help="one bias for each gate")


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """The recipe that the options ask for; raises ValueError where it is impossible."""
    changes: dict[str, Any] = {
        field.name: value
        for field in fields(Recipe)
        if (value := getattr(arguments, field.name)) is not None
    }
    if "optimizer_options" in changes:
        changes["optimizer_options"] = dict(changes["optimizer_options"])
    return recipe_of(arguments.row, arguments.form, **changes)


def describe(recipe: Recipe, seed: int) -> str:
    """Two lines: the model and how it is trained."""
    inputs = recipe.input if recipe.input == "one-hot" else f"embedding {recipe.embedding_size}"
    words = [f"{recipe.num_layers} x " if recipe.num_layers > 1 else ""]
    words.append("bidirectional " if recipe.bidirectional else "")
    words.append(recipe.cell if recipe.nonlinearity == "tanh" else f"{recipe.cell} (relu)")
    if recipe.cell == "GRU" and not recipe.reset_after:
        words.append(" (reset before the product)")
    kind = f"weights N(0, 0.01²){', one bias' * recipe.one_bias}"
    clip = f"clipped to {recipe.max_norm:g}" if recipe.max_norm else "not clipped"
    return (
        f"Model     {inputs} -> {''.join(words)}, {recipe.hidden_size} hidden -> linear"
        f"{'; ' + kind if recipe.init == 'normal' else ''}\n"
        f"Training  {recipe.epochs} epochs, {recipe.sampling} minibatches of {recipe.batch_size} x "
        f"{recipe.num_steps}, {recipe.optimizer} {recipe.learning_rate:g}, gradient norm {clip}, "
        f"seed {seed}"
    )
