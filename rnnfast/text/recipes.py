"""How to train a language model: a recipe, and those of the chapters (rows S1 ... S8)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .model import CELLS, INITS, INPUTS, ModelSpec

SAMPLINGS = ("sequential", "random", "every")
OBJECTIVES = ("next", "fill-in")
FORMS = ("scratch", "concise")


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of d2l.ai's chapter *Concise RNN*.

    Attributes:
        max_norm: all gradients together are clipped to this 2-norm; 0: they are not.
        train_tokens, validation_tokens: characters to train on, and how many of those after them
            to validate on; with ``sampling="every"`` windows, one starting at each. 0 for
            train_tokens: the whole text (less what validates).
        sampling: ``sequential`` (the state is carried), ``random`` windows, or ``every`` window.
        objective: ``next`` character, or ``fill-in``: some are hidden and named from both sides.
        optimizer: a class of torch.optim; ``optimizer_options`` are its arguments beside lr.

    The rest is as in `ModelSpec`, `windows` and `Corpus`.

    Raises:
        ValueError: a word that is none of the choices, a size that is not positive, or a layer
            that reads from both ends and is asked for the next character.
    """

    hidden_size: int = 256
    cell: str = "RNN"
    batch_size: int = 32
    num_steps: int = 35
    learning_rate: float = 1.0
    max_norm: float = 1.0
    epochs: int = 500
    train_tokens: int = 10_000
    cleaning: str = "lines"
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    input: str = "one-hot"
    embedding_size: int = 32
    nonlinearity: str = "tanh"
    reset_after: bool = True
    one_bias: bool = False
    init: str = "default"
    sampling: str = "sequential"
    validation_tokens: int = 0
    objective: str = "next"
    min_freq: int = 1
    optimizer: str = "SGD"
    optimizer_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {
            "cell": CELLS, "input": INPUTS, "init": INITS, "sampling": SAMPLINGS,
            "objective": OBJECTIVES, "nonlinearity": ("tanh", "relu"),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {list(known)}, got {getattr(self, name)!r}"
                )
        for name in ("hidden_size", "batch_size", "num_steps", "num_layers", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("train_tokens", "validation_tokens", "max_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.bidirectional and self.objective == "next":
            raise ValueError(
                "a bidirectional layer cannot be trained to name the next character: its backward "
                "half has already read it, so it would learn to copy. Use objective 'fill-in'"
            )

    def spec(self, vocab_size: int) -> ModelSpec:
        """The model of this recipe for a vocabulary of ``vocab_size``."""
        return ModelSpec(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            cell=self.cell,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            input=self.input,
            embedding_size=self.embedding_size,
            nonlinearity=self.nonlinearity,
            reset_after=self.reset_after,
            one_bias=self.one_bias,
            init=self.init,
        )

    def tokens_needed(self) -> int | None:
        """How many tokens of the text are used; None: all."""
        if self.train_tokens == 0:
            return None
        last_window = self.num_steps if self.sampling == "every" else 0
        return self.train_tokens + self.validation_tokens + last_window


@dataclass(frozen=True)
class Row:
    """A system of the chapters.

    ``concise`` is its recipe with a framework's layer; ``scratch`` changes it into the one written
    out by hand. ``form`` is the one the chapter trains. ``prefix`` and ``length``: the sample that
    the chapter prints.
    """

    title: str
    concise: Recipe
    scratch: dict[str, Any]
    form: str
    prefix: str
    length: int


BY_HAND = {"init": "normal", "one_bias": True}
"""What scratch models of the chapters have in common: N(0, 0.01²) weights and one bias."""

_WINDOWED = Recipe(
    hidden_size=32, batch_size=1024, num_steps=32, cleaning="whole", sampling="every",
    train_tokens=10_000, validation_tokens=5_000, epochs=100,
)  # fmt: skip

ROWS: dict[str, Row] = {
    "S1": Row("RNN from scratch", _WINDOWED, BY_HAND, "scratch", "it has", 20),
    "S2": Row("concise RNN", Recipe(), BY_HAND, "concise", "time traveller", 50),
    "S3": Row(
        "LSTM",
        replace(_WINDOWED, cell="LSTM", learning_rate=4.0, epochs=60),
        BY_HAND, "concise", "time traveller", 50,
    ),
    "S4": Row(
        "GRU",
        replace(_WINDOWED, cell="GRU", learning_rate=4.0, epochs=60),
        {**BY_HAND, "reset_after": False}, "concise", "time traveller", 50,
    ),
    "S5": Row(
        "deep RNN",
        replace(_WINDOWED, cell="GRU", num_layers=2, learning_rate=2.0),
        {**BY_HAND, "cell": "RNN"}, "concise", "it has", 20,
    ),
    "S6": Row(
        "bidirectional RNN",
        replace(_WINDOWED, bidirectional=True, objective="fill-in"),
        BY_HAND, "scratch", "", 0,
    ),
    "S8": Row(
        "RNN of probml's notebook",
        Recipe(sampling="random"), BY_HAND, "scratch", "time traveller", 50,
    ),
}  # fmt: skip


def recipe_of(name: str, form: str | None = None, **changes: Any) -> Recipe:
    """The recipe of row ``name`` in ``form`` (default: the row's own), with ``changes``.

    Raises:
        ValueError: no row or form has this name, or the recipe is impossible.
    """
    if name not in ROWS:
        raise ValueError(f"row must be one of {', '.join(ROWS)} (S7 is `mt`), got {name!r}")
    row = ROWS[name]
    form = form or row.form
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    return replace(row.concise, **{**(row.scratch if form == "scratch" else {}), **changes})
