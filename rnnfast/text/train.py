"""Training a language model: one epoch, and a run that can stop and go on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from . import checkpoint
from .corpus import Corpus
from .model import RNNLM, ModelSpec, State, detach
from .windows import RandomWindows, SequentialWindows


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of d2l.ai's chapter *Concise RNN*."""

    hidden_size: int = 256
    cell: str = "RNN"
    batch_size: int = 32
    num_steps: int = 35
    learning_rate: float = 1.0
    max_norm: float = 1.0
    epochs: int = 500
    train_tokens: int = 10_000
    cleaning: str = "lines"


@dataclass
class EpochResult:
    """The loss of each step (natural log, mean over its tokens), tokens read, seconds taken."""

    losses: list[float]
    tokens_per_step: list[int]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(self.tokens_per_step)

    @property
    def perplexity(self) -> float:
        """exp of the cross-entropy, averaged over the tokens of the epoch."""
        total = sum(
            loss * count for loss, count in zip(self.losses, self.tokens_per_step, strict=True)
        )
        return math.exp(min(total / self.tokens, 700.0))


def train_epoch(
    model: RNNLM,
    windows: SequentialWindows | RandomWindows,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
) -> EpochResult:
    """Train on every minibatch of ``windows`` once.

    The state starts at zero and, where the windows carry it, goes from a minibatch to the next,
    detached. All gradients together are clipped to the 2-norm ``max_norm``. The time counts
    everything: cutting the windows, one-hot, forward, loss, backward, clip, update.

    Raises:
        Diverged: a loss was not finite. The parameters are then lost too.
    """
    started = time.perf_counter()
    parameters = list(model.parameters())
    losses: list[Tensor] = []
    counts: list[int] = []
    state: State | None = None
    for x, y in windows:
        if state is None or not windows.carries_state:
            state = model.begin_state(x.shape[1])
        else:
            state = detach(state)
        logits, state = model(x, state)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        losses.append(loss.detach())
        counts.append(y.numel())
    values = torch.stack(losses).tolist()
    seconds = time.perf_counter() - started
    for step, value in enumerate(values):
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {step + 1} of {len(values)} of the epoch")
    return EpochResult(values, counts, seconds)


FIRST_STEPS = 50
"""How many steps of a run keep their loss (later ones are kept as an epoch's perplexity)."""


@dataclass
class History:
    """What a run has measured, one entry an epoch; ``first_losses`` one a step."""

    perplexity: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)

    def add(self, result: EpochResult) -> None:
        self.perplexity.append(result.perplexity)
        self.tokens.append(result.tokens)
        self.seconds.append(result.seconds)
        room = FIRST_STEPS - len(self.first_losses)
        self.first_losses += result.losses[: max(room, 0)]

    def mean_perplexity(self, last: int) -> float:
        """Mean over the last ``last`` epochs, or over all where there are fewer."""
        values = self.perplexity[-last:]
        return sum(values) / len(values)

    def tokens_per_second(self) -> float:
        """Over all epochs; the whole step counts."""
        return sum(self.tokens) / sum(self.seconds)


class TrainingRun:
    """One model in training, with all that is needed to go on after a stop.

    It has random streams of its own, so runs that take turns in one process don't disturb each
    other, nor their caller: ``seed`` alone settles weights, order of the data and dropout.

    Args:
        implementation: ``rnnfast`` or ``torch``.
        corpus: the text; its ``tokens`` are trained on.
        recipe: sizes and optimiser settings.
        seed: any int.

    Raises:
        ValueError: the text is too short for one minibatch, or the implementation is unknown.
    """

    def __init__(self, implementation: str, corpus: Corpus, recipe: Recipe, seed: int) -> None:
        self.implementation = implementation
        self.recipe = recipe
        self.seed = seed
        self.corpus = corpus
        self.spec = ModelSpec(len(corpus.vocab), recipe.hidden_size, recipe.cell)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = RNNLM.build(implementation, self.spec)
            self._rng_state = torch.get_rng_state()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=recipe.learning_rate)
        self.windows = SequentialWindows(
            corpus.tokens,
            batch_size=recipe.batch_size,
            num_steps=recipe.num_steps,
            generator=torch.Generator().manual_seed(seed),
        )
        self.history = History()

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history.perplexity)

    def train(self, epochs: int, after_epoch: Callable[[TrainingRun], bool]) -> None:
        """Train ``epochs`` more, or until ``after_epoch(self)`` returns false.

        Raises:
            Diverged: the loss was not finite; the message names the run and the epoch.
        """
        with self._own_random_stream():
            for _ in range(epochs):
                self.model.train()
                try:
                    result = train_epoch(
                        self.model, self.windows, self.optimizer, self.recipe.max_norm
                    )
                except Diverged as error:
                    raise Diverged(
                        f"{self.implementation}, epoch {self.epoch + 1}: {error}"
                    ) from error
                self.history.add(result)
                if not after_epoch(self):
                    return

    @contextmanager
    def _own_random_stream(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng_state)
            try:
                yield
            finally:
                self._rng_state = torch.get_rng_state()

    def identity(self) -> dict[str, Any]:
        """What has to be equal for a checkpoint to be of this run; the number of epochs is not."""
        recipe = asdict(self.recipe)
        del recipe["epochs"]
        return {
            "implementation": self.implementation,
            "seed": self.seed,
            "recipe": recipe,
            "model_spec": self.spec.to_dict(),
            "text": self.corpus.title,
            "text_sha1": self.corpus.fingerprint(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint; raises OSError, an older file then stays."""
        checkpoint.save(
            path,
            {
                **self.identity(),
                "epoch": self.epoch,
                "epochs_wanted": self.recipe.epochs,
                "vocabulary": self.corpus.vocab.to_list(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng_state": self._rng_state,
                "order_state": self.windows.generator.get_state(),
                "history": asdict(self.history),
            },
        )

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of this run; the same numbers as without the stop.

        Raises:
            CheckpointError: the file is missing, damaged, or of another run. Nothing is changed.
        """
        payload = checkpoint.load(path)
        checkpoint.require_same(path, payload, self.identity())
        self.model.load_state_dict(payload["model"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self._rng_state = payload["rng_state"]
        self.windows.generator.set_state(payload["order_state"])
        self.history = History(**payload["history"])
