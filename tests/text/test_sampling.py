"""Choosing tokens, and what generation does with them."""

from __future__ import annotations

import math

import pytest
import torch

from rnnfast.text.generate import generate, greedy, stream
from rnnfast.text.model import IMPLEMENTATIONS, RNNLM
from rnnfast.text.sampling import GREEDY, Sampler
from rnnfast.text.vocab import Vocabulary

P = torch.tensor([0.1, 0.4, 0.2, 0.3])
VOCAB = Vocabulary("abcdef")


def probabilities(**options) -> list[float]:
    return Sampler(**options).probabilities(P.log()[None])[0].tolist()


def test_plain_sampling_draws_from_the_models_probabilities():
    assert probabilities() == pytest.approx(P.tolist())


def test_alpha_sharpens_by_a_power():
    power = P**2.5
    assert probabilities(alpha=2.5) == pytest.approx((power / power.sum()).tolist())
    assert probabilities(alpha=2.0) == pytest.approx(probabilities(temperature=0.5))
    assert probabilities(alpha=3.0, temperature=3.0) == pytest.approx(P.tolist())


def test_top_k_keeps_the_likeliest():
    assert probabilities(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probabilities(top_k=1) == [0, 1, 0, 0]
    assert probabilities(top_k=9) == pytest.approx(P.tolist())


def test_top_p_keeps_the_fewest_that_add_up():
    assert probabilities(top_p=0.4) == pytest.approx([0, 1, 0, 0])
    assert probabilities(top_p=0.41) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probabilities(top_p=0.75) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert probabilities(top_k=2, top_p=0.5) == [0, 1, 0, 0]


def test_temperature_zero_is_greedy():
    assert probabilities(temperature=0.0) == [0, 1, 0, 0]
    assert GREEDY.pick(P.log()[None]).tolist() == [1]


def test_draws_follow_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    drawn = Sampler(top_k=3).pick(P.log().expand(20_000, 4), generator)
    found = drawn.bincount(minlength=4) / 20_000
    for share, p in zip(found.tolist(), [0, 4 / 9, 2 / 9, 3 / 9], strict=True):
        assert abs(share - p) < 5 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": math.nan}, "temperature must be 0 or more"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\]"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


# --- with a model --------------------------------------------------------------------------------


def wild(implementation: str = "rnnfast", cell: str = "LSTM") -> RNNLM:
    model = RNNLM(len(VOCAB), 8, cell=cell, num_layers=2, implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=2.0)
    return model


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cell", ["RNN", "LSTM"])
def test_prefixes_of_different_lengths_are_like_one_by_one(implementation, cell):
    model = wild(implementation, cell)
    prefixes = ["a", "fade", "be", "cafe", "decade"]
    together = generate(model, VOCAB, prefixes, 15)
    assert together == [greedy(model, VOCAB, prefix, 15) for prefix in prefixes]
    assert len({text[-15:] for text in together}) > 2


def test_a_seed_reproduces_what_is_drawn():
    model = wild()

    def drawn(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, VOCAB, ["a", "be"], 30, Sampler(2.0), generator=generator)

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) != generate(model, VOCAB, ["a", "be"], 30)


def test_a_stop_token_ends_its_own_text_only():
    model = wild()
    whole = generate(model, VOCAB, ["a", "fed"], 40)
    stop = next(c for c in whole[0][1:] if c in whole[0][1:])
    stopped = generate(model, VOCAB, ["a", "fed"], 40, stop=[stop])
    for prefix, full, found in zip(["a", "fed"], whole, stopped, strict=True):
        assert found == prefix + full[len(prefix) :].split(stop)[0]


def test_tokens_come_one_by_one():
    model = wild()
    pieces = stream(model, VOCAB, ["fade"], 10)
    first = next(pieces)
    rest = list(pieces)
    assert len(first) == 1
    assert len(rest) == 9
    text = "fade" + "".join(piece for (piece,) in [first, *rest])
    assert text == greedy(model, VOCAB, "fade", 10)


def test_the_stream_leaves_the_mode_alone_between_tokens():
    model = wild().train()
    for _ in stream(model, VOCAB, ["a"], 3):
        assert model.training


def test_what_cannot_be_streamed_is_refused_at_once():
    model = wild()
    with pytest.raises(ValueError, match="the prefix is empty"):
        stream(model, VOCAB, [], 5)
    with pytest.raises(ValueError, match="the prefix is empty"):
        stream(model, VOCAB, ["a", ""], 5)
    with pytest.raises(ValueError, match="the model never writes 'z', so it cannot stop there"):
        stream(model, VOCAB, ["a"], 5, stop=["z"])
