"""Text from a trained language model."""

from __future__ import annotations

import torch

from .model import RNNLM
from .vocab import Vocabulary


@torch.no_grad()
def greedy(model: RNNLM, vocab: Vocabulary, prefix: str, length: int) -> str:
    """``prefix`` and the ``length`` characters that the model finds most likely after it.

    The prefix is read first, from a zero state (the warm-up); each character is then fed back. A
    character that is not in ``vocab`` is read as ``<unk>``. The model's mode (train or eval) is
    left as it was.

    Raises:
        ValueError: ``prefix`` is empty, ``length`` is negative, the layer is bidirectional (it
            would have to read the text that is yet to be written), or ``vocab`` has another size.
    """
    _check(model, vocab, prefix, length)
    if length == 0:
        return prefix
    was_training = model.training
    model.eval()
    try:
        return prefix + vocab.decode(_continue(model, vocab, prefix, length))
    finally:
        model.train(was_training)


def _continue(model: RNNLM, vocab: Vocabulary, prefix: str, length: int) -> list[int]:
    device = model.output.weight.device
    tokens = vocab.encode(prefix).to(device)[:, None]  # [T, 1]
    state = model.begin_state(1)
    generated: list[int] = []
    while True:
        logits, state = model(tokens, state)
        token = logits[-1].argmax(dim=-1)  # [1]
        generated.append(int(token))
        if len(generated) == length:
            return generated
        tokens = token[None]


def _check(model: RNNLM, vocab: Vocabulary, prefix: str, length: int) -> None:
    if not prefix:
        raise ValueError("the prefix is empty: give at least one character to start from")
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    if model.layer.bidirectional:
        raise ValueError("a bidirectional layer cannot generate: it reads the text from both ends")
    if len(vocab) != model.vocab_size:
        raise ValueError(f"the vocabulary has {len(vocab)} tokens, the model {model.vocab_size}")
