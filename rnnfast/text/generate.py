"""Text from a trained language model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .model import RNNLM, State
from .sampling import GREEDY, Sampler
from .vocab import Vocabulary


def greedy(model: RNNLM, vocab: Vocabulary, prefix: str, length: int) -> str:
    """``prefix`` and the ``length`` characters that the model finds most likely after it.

    As `generate`, for one prefix.
    """
    return generate(model, vocab, [prefix], length)[0]


def generate(
    model: RNNLM,
    vocab: Vocabulary,
    prefixes: Sequence[str],
    length: int,
    sampler: Sampler = GREEDY,
    *,
    stop: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> list[str]:
    """Every prefix and up to ``length`` characters after it; as `stream`, all at once."""
    texts = list(prefixes)
    for tokens in stream(model, vocab, prefixes, length, sampler, stop=stop, generator=generator):
        texts = [text + token for text, token in zip(texts, tokens, strict=True)]
    return texts


def stream(
    model: RNNLM,
    vocab: Vocabulary,
    prefixes: Sequence[str],
    length: int,
    sampler: Sampler = GREEDY,
    *,
    stop: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> Iterator[list[str]]:
    """The next token of every prefix, as soon as it is chosen; "" for one that has ended.

    The prefixes, which may differ in length, are read as one batch from a zero state (the warm-up);
    each token chosen is then fed back. A character that is not in ``vocab`` is read as ``<unk>``.
    A text ends after ``length`` tokens or before a token of ``stop``. ``generator`` settles what is
    drawn. The model's mode (train or eval) is left as it was between the tokens.

    Raises:
        ValueError: no prefix or an empty one, a negative ``length``, a ``stop`` that is not in
            ``vocab``, a bidirectional layer (it would have to read the text that is yet to be
            written), or a ``vocab`` of another size.
    """
    _check(model, vocab, prefixes, length, stop)
    return _stream(model, vocab, prefixes, length, sampler, stop, generator)


def _stream(
    model: RNNLM,
    vocab: Vocabulary,
    prefixes: Sequence[str],
    length: int,
    sampler: Sampler,
    stop: Collection[str],
    generator: torch.Generator | None,
) -> Iterator[list[str]]:
    device = model.output.weight.device
    state = model.begin_state(len(prefixes))
    live = [True] * len(prefixes)
    tokens: Tensor | None = None
    for _ in range(length):
        with torch.no_grad(), evaluating(model):
            if tokens is None:
                logits, state = _read(model, vocab, prefixes)
            else:
                rows, state = model(tokens[None].to(device), state)
                logits = rows[0]
            tokens = sampler.pick(logits.float().cpu(), generator)  # [B]
        names = [vocab.token(int(token)) for token in tokens]
        live = [alive and name not in stop for alive, name in zip(live, names, strict=True)]
        if not any(live):
            return
        yield [name if alive else "" for alive, name in zip(live, names, strict=True)]


def _read(model: RNNLM, vocab: Vocabulary, prefixes: Sequence[str]) -> tuple[Tensor, State]:
    """The logits [B, V] after each prefix, and the states there."""
    device = model.output.weight.device
    rows = [vocab.encode(prefix) for prefix in prefixes]
    padded = pad_sequence(rows).to(device)  # [T, B]
    lengths = torch.tensor([len(row) for row in rows], device=device)
    alike = len({len(row) for row in rows}) == 1
    logits, state = model(padded, model.begin_state(len(rows)), None if alike else lengths)
    return logits[lengths - 1, torch.arange(len(rows), device=device)], state


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode, and back in its own afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _check(
    model: RNNLM,
    vocab: Vocabulary,
    prefixes: Sequence[str],
    length: int,
    stop: Collection[str],
) -> None:
    if not prefixes or not all(prefixes):
        raise ValueError("the prefix is empty: give at least one character to start from")
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    unknown = [token for token in stop if token not in vocab]
    if unknown:
        raise ValueError(f"the model never writes {unknown[0]!r}, so it cannot stop there")
    if model.spec.bidirectional:
        raise ValueError("a bidirectional layer cannot generate: it reads the text from both ends")
    if len(vocab) != model.vocab_size:
        raise ValueError(f"the vocabulary has {len(vocab)} tokens, the model {model.vocab_size}")
