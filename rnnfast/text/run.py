"""A training run that can stop and go on: what language models and translation share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from . import checkpoint
from .history import Diverged, EpochResult, History
from .place import Place

Model = TypeVar("Model", bound=nn.Module)


def make_optimizer(
    model: nn.Module, name: str, learning_rate: float, options: dict[str, Any]
) -> Optimizer:
    """The optimiser of torch.optim called ``name`` for the parameters that are trained.

    Raises:
        ValueError: torch.optim has none of this name, or it does not take ``options``.
    """
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ValueError(f"torch.optim has no optimiser called {name!r}")
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        made: Optimizer = kind(trained, lr=learning_rate, **options)  # type: ignore[call-arg]
    except TypeError as error:
        raise ValueError(f"{name} does not take {options}: {error}") from error
    return made


class Run(ABC, Generic[Model]):
    """One model in training, with all that is needed to go on after a stop.

    It has random streams of its own, so runs that take turns in one process don't disturb each
    other, nor their caller: ``seed`` alone settles weights, order of the data and dropout.

    Attributes:
        model: what is trained. net: the same behind DistributedDataParallel, where there are
            several processes.
        order: the random stream of the order of the data.
        epochs: how many epochs are wanted.
    """

    model: Model
    optimizer: Optimizer

    def __init__(
        self, implementation: str, seed: int, epochs: int, learning: dict[str, Any], place: Place
    ) -> None:
        self.implementation, self.seed, self.epochs, self.place = (
            implementation,
            seed,
            epochs,
            place,
        )
        self.order = torch.Generator().manual_seed(seed)
        self.history = History()
        with place.forked_streams():
            torch.manual_seed(seed)
            self.model = self._build().to(place.device)
            if place.rank:  # the weights are the same everywhere, dropout is not
                torch.manual_seed(seed + 1_000_003 * place.rank)
            self._streams = place.streams()
        self.net = place.wrap(self.model)
        self.optimizer = make_optimizer(self.model, **learning)

    @abstractmethod
    def _build(self) -> Model:
        """A fresh model, drawn from torch's current random stream."""

    @abstractmethod
    def _train_epoch(self) -> EpochResult:
        """One pass over the training data."""

    @abstractmethod
    def _validate(self) -> float | None:
        """Perplexity on the validation data, None where there is none."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What has to be equal for a checkpoint to be of this run; the number of epochs is not."""

    @abstractmethod
    def _belongings(self) -> dict[str, Any]:
        """What else a checkpoint holds, such as vocabularies, for those who use the model."""

    @property
    def title(self) -> str:
        """The data, in words."""
        return str(self.identity()["data"])

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history.perplexity)

    def train(self, epochs: int, after_epoch: Callable[[Any], bool]) -> None:
        """Train ``epochs`` more, or until ``after_epoch(self)`` returns false.

        Raises:
            Diverged: the loss was not finite; the message names the run and the epoch.
        """
        with self._own_random_stream():
            for _ in range(epochs):
                self.net.train()
                try:
                    result = self._train_epoch()
                    result.require_finite()
                except Diverged as error:
                    raise Diverged(
                        f"{self.implementation}, epoch {self.epoch + 1}: {error} of the epoch. "
                        "A smaller learning rate or clipping may help; what was saved before stays"
                    ) from error
                self.history.add(result, self._validate())
                if not after_epoch(self):
                    return

    @contextmanager
    def _own_random_stream(self) -> Iterator[None]:
        with self.place.forked_streams():
            self.place.set_streams(self._streams)
            try:
                yield
            finally:
                self._streams = self.place.streams()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint; raises OSError, an older file then stays.

        Where several processes train, all must call it, and the first one writes.
        """
        streams = self.place.gather(self._streams)
        if not self.place.leads:
            return
        checkpoint.save(
            path,
            {
                **self.identity(),
                **self._belongings(),
                "epoch": self.epoch,
                "epochs_wanted": self.epochs,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "streams": streams,
                "order_state": self.order.get_state(),
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
        self._streams = payload["streams"][self.place.rank]
        self.order.set_state(payload["order_state"])
        self.history = History(**payload["history"])
