"""Sampling, validation, optimisers, clipping, precision: what a recipe can ask for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rnnfast.text.corpus import Corpus
from rnnfast.text.data import Text
from rnnfast.text.history import Diverged
from rnnfast.text.place import Place
from rnnfast.text.train import TrainingRun, evaluate
from rnnfast.text.windows import (
    IGNORED,
    EveryWindow,
    FillIn,
    FillInAlike,
    SequentialWindows,
    WindowAtEveryPosition,
)

from .conftest import TINY_RECIPE

EVERY = replace(
    TINY_RECIPE, sampling="every", batch_size=30, train_tokens=100, validation_tokens=40
)


def go_on(run) -> bool:
    return True


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def run_of(tiny_text):
    def make(recipe, implementation="rnnfast", seed=0, place=None):
        corpus = Corpus.from_text(
            tiny_text, cleaning=recipe.cleaning, max_tokens=recipe.tokens_needed()
        )
        return TrainingRun(implementation, corpus, recipe, seed, place or Place())

    return make


# --- windows -------------------------------------------------------------------------------------


def test_a_window_at_every_position_once_in_any_order():
    windows = EveryWindow(torch.arange(50), batch_size=8, num_steps=4, generator=generator())
    orders = []
    for _ in range(2):
        batches = list(windows)
        assert [x.shape[1] for x, _ in batches] == [8, 8, 8, 8, 8, 6]
        for x, y in batches:
            assert torch.equal(x, x[0] + torch.arange(4)[:, None])
            assert torch.equal(y, x + 1)
        orders.append(torch.cat([x[0] for x, _ in batches]).tolist())
        assert sorted(orders[-1]) == list(range(46))
    assert orders[0] != orders[1]


def test_validation_takes_the_text_in_its_order():
    every = EveryWindow(torch.arange(20), batch_size=8, num_steps=4, generator=None)
    assert torch.cat([x[0] for x, _ in every]).tolist() == list(range(16))
    rows = SequentialWindows(torch.arange(20), batch_size=2, num_steps=4, generator=None)
    assert torch.cat([x[:, 0] for x, _ in rows]).tolist() == list(range(8))


def test_they_are_torchs_data_sets():
    single = DataLoader(WindowAtEveryPosition(torch.arange(9), 4), batch_size=None)
    assert [x.tolist() for x, _ in single][1] == [1, 2, 3, 4]
    windows = SequentialWindows(torch.arange(50), batch_size=2, num_steps=4, generator=None)
    loaded = DataLoader(windows, batch_size=None)
    for (x, y), (u, v) in zip(windows, loaded, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


def test_fill_in_hides_what_it_asks_for():
    tokens = torch.arange(1, 400)
    windows = EveryWindow(tokens, batch_size=64, num_steps=9, generator=None)
    plain = torch.cat([x for x, _ in windows], 1)
    batches = list(FillIn(windows, generator(), 0.25))
    x, y = (torch.cat(part, 1) for part in zip(*batches, strict=True))
    hidden = y != IGNORED
    assert torch.equal(x == 0, hidden)
    assert torch.equal(torch.where(hidden, y, x), plain)
    assert 0.2 < hidden.float().mean() < 0.3
    alike = FillInAlike(windows, seed=3)
    assert torch.equal(*(torch.cat([x for x, _ in alike], 1) for _ in range(2)))


def test_text_that_is_too_short_is_refused(tiny_text, run_of):
    with pytest.raises(ValueError, match=r"the text has 4 tokens; .* needs at least 5"):
        EveryWindow(torch.arange(4), batch_size=2, num_steps=4, generator=None)
    short = Text(title="short", content=tiny_text.content[:150], origin="")
    corpus = Corpus.from_text(short)
    with pytest.raises(ValueError, match=r"tokens; 100 to train on and 40 to validate on need 145"):
        TrainingRun("rnnfast", Corpus.from_text(replace(short, content="abc " * 30)), EVERY, 0)
    whole = replace(EVERY, train_tokens=0, validation_tokens=20)
    run = TrainingRun("rnnfast", corpus, whole, 0)
    assert len(run.windows.tokens) == len(corpus.tokens) - 20


# --- validation ----------------------------------------------------------------------------------


def test_validation_perplexity_by_hand(run_of):
    run = run_of(EVERY)
    run.train(2, go_on)
    tokens = run.corpus.tokens[100:145]
    total, count = 0.0, 0
    with torch.no_grad():
        for at in range(40):
            x, y = tokens[at : at + 5, None], tokens[at + 1 : at + 6, None]
            logits, _ = run.model(x, run.model.begin_state(1))
            total += float(F.cross_entropy(logits[:, 0], y[:, 0], reduction="sum"))
            count += 5
    assert run.history.validation[-1] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert len(run.history.validation) == 2


def test_validation_of_sequential_rows_carries_the_state(run_of):
    run = run_of(replace(TINY_RECIPE, validation_tokens=60, batch_size=1))
    tokens = run.corpus.tokens[200:260]
    x, y = tokens[:55, None], tokens[1:56, None]
    with torch.no_grad():
        logits, _ = run.model(x, run.model.begin_state(1))
        expected = F.cross_entropy(logits[:, 0], y[:, 0])
    found = evaluate(run.model, run.validation)
    assert found == pytest.approx(math.exp(float(expected)), rel=1e-5)


# --- the step ------------------------------------------------------------------------------------


def test_clipping_can_be_left_out(run_of):
    losses = []
    for max_norm in (0.0, 1e9, 1e-3):
        run = run_of(replace(TINY_RECIPE, max_norm=max_norm))
        run.train(2, go_on)
        losses.append(run.history.first_losses)
    assert losses[0] == losses[1]
    assert losses[2][-1] > losses[0][-1]


def test_any_optimiser_of_torch(run_of):
    recipe = replace(
        TINY_RECIPE, optimizer="AdamW", learning_rate=0.01, optimizer_options={"weight_decay": 0.1}
    )
    run = run_of(recipe)
    assert type(run.optimizer) is torch.optim.AdamW
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.1
    run.train(3, go_on)
    assert run.history.perplexity[-1] < run.history.perplexity[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "Newton"}, "torch.optim has no optimiser called 'Newton'"),
        ({"optimizer": "lr_scheduler"}, "torch.optim has no optimiser called 'lr_scheduler'"),
        ({"optimizer_options": {"speed": 1.0}}, "SGD does not take .*speed"),
    ],
)
def test_unknown_optimisers_are_refused(run_of, changes, message):
    with pytest.raises(ValueError, match=message):
        run_of(replace(TINY_RECIPE, **changes))


def test_one_bias_stays_one_bias(run_of):
    run = run_of(replace(TINY_RECIPE, one_bias=True, init="normal"))
    run.train(2, go_on)
    assert not run.model.layer.bias_hh_l0.any()
    assert run.model.layer.bias_ih_l0.any()


def test_bfloat16_is_close_to_float32(run_of):
    losses = []
    for bf16 in (False, True):
        run = run_of(TINY_RECIPE, place=Place(bf16=bf16))
        run.train(1, go_on)
        losses.append(run.history.first_losses)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_divergence_in_a_real_run_stops(run_of):
    run = run_of(replace(TINY_RECIPE, learning_rate=1e20, max_norm=0.0, nonlinearity="relu"))
    with pytest.raises(Diverged, match=r"rnnfast, epoch \d+: the loss is (nan|inf) at step"):
        run.train(6, go_on)


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cuda was asked for, and this torch sees no GPU"):
        Place("cuda")


def test_other_cleanings_keep_accents(tiny_text):
    text = Text(title="french", content="Été, 1898.\nÇa va", origin="")
    corpus = Corpus.from_text(text, cleaning="raw", min_freq=1)
    assert corpus.vocab.decode(corpus.tokens) == "Été, 1898.\nÇa va"
    rare = Corpus.from_text(text, cleaning="raw", min_freq=2)
    assert rare.vocab.decode(rare.tokens).count("<unk>") > 8
    read = Corpus.from_text(tiny_text, vocab=corpus.vocab)
    assert read.vocab == corpus.vocab
