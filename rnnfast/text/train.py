"""Training a language model: one epoch, one evaluation, and a run of them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import clip_grad_norm_
from .corpus import Corpus
from .history import FIRST_STEPS, Diverged, EpochResult, History, perplexity
from .model import RNNLM, State, detach
from .place import Place
from .recipes import Recipe
from .run import Run
from .windows import IGNORED, KINDS, FillIn, FillInAlike, Windows

__all__ = [
    "FIRST_STEPS",
    "Diverged",
    "EpochResult",
    "History",
    "Recipe",
    "TrainingRun",
    "evaluate",
    "make_windows",
    "train_epoch",
]

HERE = Place()


def train_epoch(
    model: RNNLM,
    windows: Windows | FillIn,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    place: Place = HERE,
    net: nn.Module | None = None,
) -> EpochResult:
    """Train on every minibatch of ``windows`` once.

    The state starts at zero and, where the windows carry it, goes from a minibatch to the next,
    detached. All gradients together are clipped to the 2-norm ``max_norm`` (0: they are not). The
    time counts everything: cutting the windows, one-hot, forward, loss, backward, clip, update.
    ``net`` is ``model``, or ``model`` behind what averages gradients over processes.
    """
    started = time.perf_counter()
    net = model if net is None else net
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses: list[Tensor] = []
    counts: list[int] = []
    state: State | None = None
    for x, y in windows:
        tokens, targets = place.share(x), place.share(y)
        state = _next_state(model, windows.carries_state, state, tokens)
        with place.precision():
            logits, state = net(tokens, state)
        count = _targets(y, windows)
        loss = place.mean_loss(logits, targets, count, IGNORED)
        optimizer.zero_grad()
        loss.backward()
        if max_norm > 0:
            clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        losses.append(loss.detach())
        counts.append(count)
    values = place.total(torch.stack(losses)) / place.processes
    return EpochResult(values.tolist(), counts, time.perf_counter() - started)


def _next_state(model: RNNLM, carried: bool, state: State | None, tokens: Tensor) -> State:
    if state is None or not carried:
        return model.begin_state(tokens.shape[1])
    return detach(state)


def _targets(y: Tensor, windows: Windows | FillIn) -> int:
    return int((y != IGNORED).sum()) if isinstance(windows, FillIn) else y.numel()


@torch.no_grad()
def evaluate(model: RNNLM, windows: Windows | FillIn, place: Place = HERE) -> float:
    """Perplexity on ``windows``, a token as much as another; every process computes all of it.

    The model's mode is left as it was.
    """
    was_training = model.training
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=place.device), 0
    state: State | None = None
    try:
        for x, y in windows:
            tokens, targets = x.to(place.device), y.to(place.device)
            state = _next_state(model, windows.carries_state, state, tokens)
            with place.precision():
                logits, state = model(tokens, state)
            total += F.cross_entropy(
                logits.float().flatten(0, 1),
                targets.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            )
            count += _targets(y, windows)
    finally:
        model.train(was_training)
    return perplexity(float(total), count)


def make_windows(
    recipe: Recipe, tokens: Tensor, order: torch.Generator, batch_size: int, seed: int
) -> tuple[Windows | FillIn, Windows | FillIn | None]:
    """The minibatches to train on, and those to validate on if the recipe has such.

    Raises:
        ValueError: the text is too short for one minibatch of either.
    """
    kind = KINDS[recipe.sampling]
    last_window = recipe.num_steps if recipe.sampling == "every" else 0
    train = recipe.train_tokens or len(tokens) - recipe.validation_tokens - last_window
    if recipe.validation_tokens and train + recipe.validation_tokens > len(tokens) - last_window:
        raise ValueError(
            f"the text has {len(tokens)} tokens; {train} to train on and "
            f"{recipe.validation_tokens} to validate on need "
            f"{train + recipe.validation_tokens + last_window}"
        )
    sizes = {"batch_size": batch_size, "num_steps": recipe.num_steps}
    training = kind(tokens[: max(train + last_window, 0)], **sizes, generator=order)
    validation: Windows | None = None
    if recipe.validation_tokens:
        stop = train + recipe.validation_tokens + last_window
        validation = kind(tokens[train:stop], **sizes, generator=None)
    if recipe.objective == "next":
        return training, validation
    return FillIn(training, order), validation and FillInAlike(validation, seed)


class TrainingRun(Run[RNNLM]):
    """A language model in training.

    Args:
        implementation: one of `model.IMPLEMENTATIONS`.
        corpus: the text; its ``tokens`` are trained and validated on.
        recipe: the model, its sizes and how it is trained. With several processes each has a
            minibatch of ``batch_size``.
        seed: any int.
        place: device, precision and processes.

    Raises:
        ValueError: the text is too short for one minibatch, or the implementation is unknown.
    """

    def __init__(
        self,
        implementation: str,
        corpus: Corpus,
        recipe: Recipe,
        seed: int,
        place: Place = HERE,
    ) -> None:
        self.recipe, self.corpus = recipe, corpus
        self.spec = recipe.spec(len(corpus.vocab))
        learning = {
            "name": recipe.optimizer,
            "learning_rate": recipe.learning_rate,
            "options": recipe.optimizer_options,
        }
        super().__init__(implementation, seed, recipe.epochs, learning, place)
        self.windows, self.validation = make_windows(
            recipe, corpus.tokens, self.order, recipe.batch_size * place.processes, seed
        )

    def _build(self) -> RNNLM:
        return RNNLM.build(self.implementation, self.spec)

    def _train_epoch(self) -> EpochResult:
        return train_epoch(
            self.model, self.windows, self.optimizer, self.recipe.max_norm, self.place, self.net
        )

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        return evaluate(self.model, self.validation, self.place)

    def identity(self) -> dict[str, Any]:
        recipe = asdict(self.recipe)
        del recipe["epochs"]
        return {
            "kind": "language model",
            "implementation": self.implementation,
            "seed": self.seed,
            "model_spec": self.spec.to_dict(),
            "recipe": recipe,
            "processes": self.place.processes,
            "bf16": self.place.bf16,
            "data": self.corpus.title,
            "data_sha1": self.corpus.fingerprint(),
        }

    def _belongings(self) -> dict[str, Any]:
        return {"vocabulary": self.corpus.vocab.to_list()}
