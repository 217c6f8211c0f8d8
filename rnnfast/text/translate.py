"""Translating with a trained model: greedily or with a beam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .generate import evaluating
from .model import State
from .pairs import BOS, EOS, PAD, encode_source
from .seq2seq import Seq2Seq
from .vocab import Vocabulary


@dataclass(frozen=True)
class Translator:
    """A model with its vocabularies; sentences are cut at ``num_steps`` words, both ways.

    Its methods leave the model's mode as it was.
    """

    model: Seq2Seq
    source_vocab: Vocabulary
    target_vocab: Vocabulary
    num_steps: int

    @torch.no_grad()
    def greedy(self, sentences: Sequence[str]) -> list[str]:
        """The translation of each sentence, always taking the likeliest word; one batch.

        Raises:
            ValueError: an empty sentence.
        """
        if not sentences:
            return []
        eos = self.target_vocab.index(EOS)
        with evaluating(self.model):
            context, state = self._encode(sentences)
            tokens = self._begin(len(sentences))
            chosen: list[Tensor] = []
            for _ in range(self.num_steps):
                logits, state = self.model.decode(tokens[None], context, state)
                tokens = logits[0].argmax(-1)  # [B]
                chosen.append(tokens)
                if all(eos in row for row in torch.stack(chosen, 1).tolist()):
                    break
        return [self._sentence(row) for row in torch.stack(chosen, 1).tolist()]

    @torch.no_grad()
    def beam(self, sentence: str, width: int = 4, length_power: float = 0.75) -> str:
        """The translation with the best Σ log p / L^length_power of those that a beam finds.

        At each step the ``width`` likeliest beginnings stay; L counts the words and ``<eos>``.

        Raises:
            ValueError: an empty sentence, or a width below 1.
        """
        if width < 1:
            raise ValueError(f"the width of the beam must be at least 1, got {width}")
        eos = self.target_vocab.index(EOS)
        live: list[tuple[float, list[int]]] = [(0.0, [])]
        ended: list[tuple[float, list[int]]] = []
        with evaluating(self.model):
            context, state = self._encode([sentence])
            tokens = self._begin(1)
            for _ in range(self.num_steps):
                logits, state = self.model.decode(
                    tokens[None], context.expand(len(live), -1), state
                )
                grown = _grow(live, torch.log_softmax(logits[0].float(), -1), width)
                ended += [(score, row) for score, row, _ in grown if row[-1] == eos]
                kept = [entry for entry in grown if entry[1][-1] != eos]
                live = [(score, row) for score, row, _ in kept]
                if not live:
                    break
                device = context.device
                state = _rows(state, torch.tensor([origin for *_, origin in kept], device=device))
                tokens = torch.tensor([row[-1] for _, row in live], device=device)
        _, best = max(ended + live, key=lambda found: found[0] / len(found[1]) ** length_power)
        return self._sentence(best)

    def _encode(self, sentences: Sequence[str]) -> tuple[Tensor, State]:
        device = self.model.output.weight.device
        rows = [encode_source(s, self.source_vocab, self.num_steps) for s in sentences]
        source = torch.stack(rows, 1).to(device)  # [T, B]
        lengths = (source != self.source_vocab.index(PAD)).sum(0)
        return self.model.encode(source, lengths)

    def _begin(self, batch: int) -> Tensor:
        bos = self.target_vocab.index(BOS)
        return torch.full((batch,), bos, device=self.model.output.weight.device)

    def _sentence(self, tokens: Sequence[int]) -> str:
        """The words before ``<eos>``."""
        found = [self.target_vocab.token(token) for token in tokens]
        return " ".join(found[: found.index(EOS)] if EOS in found else found)


def _grow(
    live: Sequence[tuple[float, list[int]]], log_p: Tensor, width: int
) -> list[tuple[float, list[int], int]]:
    """The ``width`` best beginnings with a word more: (score, words, which one it grew from)."""
    scores = torch.tensor([score for score, _ in live], device=log_p.device)[:, None] + log_p
    best = scores.flatten().topk(min(width, scores.numel()))
    grown = []
    for score, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        origin, token = divmod(at, log_p.shape[-1])
        if score > -math.inf:
            grown.append((score, [*live[origin][1], token], origin))
    return grown


def _rows(state: State, at: Tensor) -> State:
    """The rows ``at`` of the states' batch."""
    if isinstance(state, Tensor):
        return state.index_select(1, at)
    return state[0].index_select(1, at), state[1].index_select(1, at)
