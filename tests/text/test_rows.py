"""Every row of the chapters, on a small scale: scratch, torch.nn and rnnfast learn the same."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rnnfast.text import compare
from rnnfast.text.corpus import Corpus
from rnnfast.text.model import IMPLEMENTATIONS, RNNLM, ModelSpec, copy_weights, load_weights
from rnnfast.text.mt_train import TranslationRun
from rnnfast.text.recipes import FORMS, ROWS, Recipe, recipe_of
from rnnfast.text.train import TrainingRun

from .conftest import TINY_TRANSLATION

SMALL = {"hidden_size": 9, "num_steps": 7, "train_tokens": 300, "batch_size": 8}


def small(name: str, form: str) -> Recipe:
    recipe = recipe_of(name, form, **SMALL)
    if recipe.sampling == "every":
        recipe = replace(recipe, batch_size=40, validation_tokens=50)
    return recipe


def go_on(run) -> bool:
    return True


def train_together(runs) -> list[list[float]]:
    compare.share_weights(runs)
    for run in runs:
        while len(run.history.first_losses) < 50:
            run.train(1, go_on)
    return [run.history.first_losses for run in runs]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ROWS)
def test_the_first_fifty_steps_agree(tiny_text, name, form):
    """Copied weights, dropout 0: losses within 1e-4 relative in every implementation."""
    recipe = small(name, form)
    corpus = Corpus.from_text(
        tiny_text, cleaning=recipe.cleaning, max_tokens=recipe.tokens_needed()
    )
    names = [n for n in IMPLEMENTATIONS if recipe.reset_after or n != "torch"]
    losses = train_together([TrainingRun(n, corpus, recipe, 0) for n in names])
    assert len(losses) == (2 if name == "S4" and form == "scratch" else 3)
    assert len(losses[0]) == 50
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_the_first_fifty_steps_of_translation_agree(pair_corpus, cell):
    recipe = replace(TINY_TRANSLATION, dropout=0.0, cell=cell)
    runs = [TranslationRun(name, pair_corpus, recipe, 0) for name in IMPLEMENTATIONS]
    scratch, torchs, ours = train_together(runs)
    assert scratch == pytest.approx(torchs, rel=1e-4)
    assert ours == pytest.approx(torchs, rel=1e-4)
    assert ours[-1] < 0.7 * ours[0]


def test_rows_are_the_chapters():
    assert list(ROWS) == ["S1", "S2", "S3", "S4", "S5", "S6", "S8"]
    s1, s2, s3 = recipe_of("S1"), recipe_of("S2"), recipe_of("S3")
    assert (s1.hidden_size, s1.batch_size, s1.num_steps, s1.epochs) == (32, 1024, 32, 100)
    assert (s1.learning_rate, s1.max_norm, s1.init, s1.one_bias) == (1.0, 1.0, "normal", True)
    assert (s1.train_tokens, s1.validation_tokens, s1.sampling) == (10_000, 5_000, "every")
    assert s2 == Recipe()
    assert (s2.hidden_size, s2.batch_size, s2.num_steps, s2.epochs) == (256, 32, 35, 500)
    assert (s3.cell, s3.learning_rate, s3.epochs, s3.one_bias) == ("LSTM", 4.0, 60, False)
    assert not recipe_of("S4", "scratch").reset_after
    assert recipe_of("S4", "concise").reset_after
    assert (recipe_of("S5").cell, recipe_of("S5", "scratch").cell) == ("GRU", "RNN")
    assert recipe_of("S5").num_layers == recipe_of("S5", "scratch").num_layers == 2
    assert recipe_of("S6").bidirectional
    assert recipe_of("S8").sampling == "random"


def test_normal_initialisation():
    model = RNNLM(28, 64, cell="LSTM", init="normal", implementation="torch")
    weights = torch.cat([p.flatten() for n, p in model.named_parameters() if "weight" in n])
    assert float(weights.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not any(p.any() for n, p in model.named_parameters() if "bias" in n)


def test_copying_needs_the_same_model():
    two = RNNLM(7, 5, implementation="torch")
    one = RNNLM(7, 5, implementation="scratch", one_bias=True)
    with pytest.raises(ValueError, match="bias_hh_l0 is not zero, and this model has one bias"):
        copy_weights(two, one)
    copy_weights(one, two)
    assert not two.layer.bias_hh_l0.any()
    copy_weights(two, one)
    with pytest.raises(ValueError, match="weights of another model"):
        copy_weights(RNNLM(7, 5, num_layers=2), two)
    with pytest.raises(ValueError, match=r"weight_ih_l0 is \[6, 7\], this model has \[5, 7\]"):
        load_weights(two, RNNLM(7, 6).state_dict())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_embedding_is_a_product_with_one_hot(implementation):
    """A learned embedding E and W_ih give the numbers of one-hot vectors and W_ih Eᵀ."""
    embedded = RNNLM.build(implementation, ModelSpec(7, 5, "GRU", input="embedding")).double()
    plain = RNNLM.build(implementation, ModelSpec(7, 5, "GRU")).double()
    weights = embedded.state_dict()
    table = weights.pop("embedding.weight")
    weights["layer.weight_ih_l0"] = weights["layer.weight_ih_l0"] @ table.T
    load_weights(plain, weights)
    x = torch.randint(7, (4, 3))
    for found, expected in zip(
        embedded(x, embedded.begin_state(3)), plain(x, plain.begin_state(3)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "TCN"}, "cell must be one of .*got 'TCN'"),
        ({"sampling": "none"}, "sampling must be one of"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"max_norm": -1.0}, "max_norm must not be negative"),
        ({"bidirectional": True}, "a bidirectional layer cannot be trained to name the next"),
    ],
)
def test_impossible_recipes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe_of("S2", **changes)


def test_unknown_rows_are_refused():
    with pytest.raises(ValueError, match=r"row must be one of S1, .*\(S7 is `mt`\), got 'S7'"):
        recipe_of("S7")
    with pytest.raises(ValueError, match="form must be one of scratch, concise, got 'fast'"):
        recipe_of("S2", "fast")


def test_first_loss_is_that_of_guessing(tiny_text):
    """N(0, 0.01²) weights know nothing: the first perplexity is the number of kinds."""
    recipe = small("S1", "scratch")
    corpus = Corpus.from_text(tiny_text, cleaning="whole", max_tokens=recipe.tokens_needed())
    run = TrainingRun("rnnfast", corpus, recipe, 0)
    run.train(1, go_on)
    assert math.exp(run.history.first_losses[0]) == pytest.approx(len(corpus.vocab), rel=1e-2)
