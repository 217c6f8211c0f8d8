"""Training a translation model: recipe, one epoch, one evaluation, and a run of them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip import clip_grad_norm_
from .history import EpochResult, perplexity
from .pairs import PAD, PairBatches, PairCorpus
from .place import Place
from .run import Run
from .seq2seq import Seq2Seq, Seq2SeqSpec
from .train import HERE
from .translate import Translator


@dataclass(frozen=True)
class TranslationRecipe:
    """How to train. The defaults are those of d2l.ai's chapter *Sequence-to-Sequence* (row S7)."""

    embedding_size: int = 256
    hidden_size: int = 256
    num_layers: int = 2
    dropout: float = 0.2
    cell: str = "GRU"
    reads_lengths: bool = False
    num_steps: int = 9
    pairs: int = 641
    train_pairs: int = 512
    min_freq: int = 2
    batch_size: int = 128
    learning_rate: float = 0.005
    max_norm: float = 1.0
    epochs: int = 30
    optimizer: str = "Adam"
    optimizer_options: dict[str, Any] = field(default_factory=dict)

    def spec(self, corpus: PairCorpus) -> Seq2SeqSpec:
        """The model of this recipe for the vocabularies of ``corpus``."""
        return Seq2SeqSpec(
            source_vocab=len(corpus.source_vocab),
            target_vocab=len(corpus.target_vocab),
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            dropout=self.dropout,
            cell=self.cell,
            reads_lengths=self.reads_lengths,
        )


def train_pairs(
    model: Seq2Seq,
    batches: PairBatches,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    pad: int,
    place: Place = HERE,
    net: nn.Module | None = None,
) -> EpochResult:
    """Train on every minibatch once, with teacher forcing.

    The loss is the mean over the target words that are not ``pad``; tokens count these. The time
    counts everything: fetching, forward, loss, backward, clipping, update.
    """
    started = time.perf_counter()
    net = model if net is None else net
    losses: list[Tensor] = []
    counts: list[int] = []
    for batch in batches:
        source, inputs = place.share(batch.source), place.share(batch.inputs)
        lengths, targets = place.share(batch.lengths, dim=0), place.share(batch.targets)
        count = int((batch.targets != pad).sum())
        with place.precision():
            logits = net(source, lengths, inputs)
        loss = place.mean_loss(logits, targets, count, pad)
        optimizer.zero_grad()
        loss.backward()
        if max_norm > 0:
            clip_grad_norm_(list(model.parameters()), max_norm)
        optimizer.step()
        losses.append(loss.detach())
        counts.append(count)
    values = place.total(torch.stack(losses)) / place.processes
    return EpochResult(values.tolist(), counts, time.perf_counter() - started)


@torch.no_grad()
def evaluate_pairs(model: Seq2Seq, batches: PairBatches, pad: int, place: Place = HERE) -> float:
    """Perplexity of the target words that are not ``pad``; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=place.device), 0
    try:
        for batch in batches:
            tensors = (batch.source, batch.lengths, batch.inputs)
            with place.precision():
                logits = model(*(tensor.to(place.device) for tensor in tensors))
            targets = batch.targets.to(place.device).flatten()
            rows = logits.float().flatten(0, 1)
            total += F.cross_entropy(rows, targets, ignore_index=pad, reduction="sum")
            count += int((batch.targets != pad).sum())
    finally:
        model.train(was_training)
    return perplexity(float(total), count)


class TranslationRun(Run[Seq2Seq]):
    """A translation model in training; arguments as those of `TrainingRun`."""

    def __init__(
        self,
        implementation: str,
        corpus: PairCorpus,
        recipe: TranslationRecipe,
        seed: int,
        place: Place = HERE,
    ) -> None:
        self.recipe, self.corpus = recipe, corpus
        self.spec = recipe.spec(corpus)
        self.pad = corpus.target_vocab.index(PAD)
        learning = {
            "name": recipe.optimizer,
            "learning_rate": recipe.learning_rate,
            "options": recipe.optimizer_options,
        }
        super().__init__(implementation, seed, recipe.epochs, learning, place)
        self.batches = PairBatches(corpus, recipe.batch_size * place.processes, self.order)
        self.validation = PairBatches(corpus, recipe.batch_size, None)

    def _build(self) -> Seq2Seq:
        return Seq2Seq(self.implementation, self.spec)

    def _train_epoch(self) -> EpochResult:
        return train_pairs(
            self.model, self.batches, self.optimizer, self.recipe.max_norm, self.pad,
            self.place, self.net,
        )  # fmt: skip

    def _validate(self) -> float | None:
        if not self.corpus.validation_sentences():
            return None
        return evaluate_pairs(self.model, self.validation, self.pad, self.place)

    def translator(self) -> Translator:
        """What translates with the model as it is now."""
        corpus = self.corpus
        return Translator(self.model, corpus.source_vocab, corpus.target_vocab, corpus.num_steps)

    def identity(self) -> dict[str, Any]:
        recipe = asdict(self.recipe)
        del recipe["epochs"]
        return {
            "kind": "translation",
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
        return {
            "source_vocabulary": self.corpus.source_vocab.to_list(),
            "target_vocabulary": self.corpus.target_vocab.to_list(),
        }
