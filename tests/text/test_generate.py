"""Greedy generation."""

from __future__ import annotations

import pytest
import torch

from rnnfast.text.generate import greedy
from rnnfast.text.model import RNNLM, ModelSpec
from rnnfast.text.vocab import Vocabulary

VOCAB = Vocabulary("abcdef")
SPEC = ModelSpec(vocab_size=len(VOCAB), hidden_size=8)


def by_hand(model: RNNLM, prefix: str, length: int) -> str:
    """Feeds the whole text so far again for each character."""
    text = VOCAB.encode(prefix).tolist()
    for _ in range(length):
        logits, _ = model(torch.tensor(text)[:, None], model.begin_state(1))
        text.append(int(logits[-1, 0].argmax()))
    return prefix + VOCAB.decode(text[len(prefix) :])


@pytest.mark.parametrize("implementation", ["rnnfast", "torch"])
@pytest.mark.parametrize("cell", ["RNN", "LSTM"])
def test_continues_the_prefix_with_the_likeliest_characters(implementation, cell):
    model = RNNLM.build(implementation, ModelSpec(len(VOCAB), 8, cell))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=3.0)
    for prefix in ("a", "fade", "bead"):
        assert greedy(model, VOCAB, prefix, 20) == by_hand(model, prefix, 20)
    assert len({greedy(model, VOCAB, prefix, 20)[-20:] for prefix in "abcdef"}) > 1


def test_unknown_characters_are_read_as_unk():
    model = RNNLM.build("torch", SPEC)
    known = VOCAB.encode("a?é").tolist()
    assert known == [1, 0, 0]
    text = greedy(model, VOCAB, "a?é", 10)
    assert text.startswith("a?é")
    assert text[3:] == greedy(model, VOCAB, "a!!", 10)[3:]


def test_length_zero_gives_the_prefix():
    assert greedy(RNNLM.build("torch", SPEC), VOCAB, "abc", 0) == "abc"


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_are_left_alone(training):
    model = RNNLM.build("torch", SPEC).train(training)
    greedy(model, VOCAB, "ab", 5)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_generated_is_refused():
    model = RNNLM.build("torch", SPEC)
    with pytest.raises(ValueError, match="the prefix is empty"):
        greedy(model, VOCAB, "", 5)
    with pytest.raises(ValueError, match="length must not be negative, got -1"):
        greedy(model, VOCAB, "a", -1)
    with pytest.raises(ValueError, match="the vocabulary has 3 tokens, the model 7"):
        greedy(model, Vocabulary("ab"), "a", 5)
    both_ways = RNNLM(len(VOCAB), 8, bidirectional=True)
    with pytest.raises(ValueError, match="a bidirectional layer cannot generate"):
        greedy(both_ways, VOCAB, "a", 5)
