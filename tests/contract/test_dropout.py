"""Dropout between layers is torch's own: the same seed gives the same masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract.helpers import KINDS, Maker, hidden, run, twins
from tests.oracle import assert_all_close_to_oracle

T, B, WIDTH, H = 7, 3, 4, 5


def seeded(layer: Any, x: Tensor, hx: Any = None) -> tuple[dict[str, Tensor], Tensor]:
    """Everything `run` returns from a fixed seed, and the number the generator gives next."""
    torch.manual_seed(77)
    return run(layer, x, hx), torch.rand(1)


@pytest.mark.parametrize("layout", ["time_first", "batch_first", "unbatched"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_torchs_masks(
    make_layer: Maker, backend: str, kind: str, bidirectional: bool, layout: str
) -> None:
    ours, theirs = twins(
        make_layer,
        kind,
        WIDTH,
        H,
        3,
        dropout=0.4,
        bidirectional=bidirectional,
        batch_first=layout == "batch_first",
        dtype=torch.float64,
    )
    shape = {"time_first": (T, B), "batch_first": (B, T), "unbatched": (T,)}[layout]
    x = torch.randn(*shape, WIDTH, dtype=torch.float64)
    hx = hidden(theirs, None if layout == "unbatched" else B, dtype=torch.float64)
    (got, next_of_ours), (want, next_of_theirs) = seeded(ours, x, hx), seeded(theirs, x, hx)
    assert_all_close_to_oracle(got, want)
    assert torch.equal(next_of_ours, next_of_theirs), "the generator was left elsewhere"


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_gives_another_mask(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, WIDTH, H, 2, dropout=0.5)
    x = torch.randn(T, B, WIDTH)
    first, second = layer(x)[0], layer(x)[0]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_can_be_changed_after_construction(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, 2, dtype=torch.float64)
    x = torch.randn(T, B, WIDTH, dtype=torch.float64)
    without = run(ours, x)
    for dropout in (0.6, 1.0, 0.0):
        ours.dropout = theirs.dropout = dropout
        got, want = seeded(ours, x)[0], seeded(theirs, x)[0]
        assert_all_close_to_oracle(got, want)
        assert torch.equal(got["output"], without["output"]) == (dropout == 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_eval_drops_nothing_and_still_has_gradients(make_layer: Maker, kind: str) -> None:
    ours, theirs = twins(make_layer, kind, WIDTH, H, 3, dropout=0.5, dtype=torch.float64)
    x, hx = torch.randn(T, B, WIDTH, dtype=torch.float64), hidden(ours, B, dtype=torch.float64)
    assert ours.eval() is ours
    assert not ours.training
    theirs.eval()
    before = torch.get_rng_state()
    got = run(ours, x, hx)
    assert torch.equal(torch.get_rng_state(), before), "eval drew random numbers"
    assert_all_close_to_oracle(got, run(theirs, x, hx))
    ours.train()
    assert ours.training
    assert not torch.equal(ours(x, hx)[0], got["output"])


def test_one_layer_has_nothing_to_drop(make_layer: Maker) -> None:
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        layer = make_layer("LSTM", WIDTH, H, dropout=0.5)
    x = torch.randn(T, B, WIDTH)
    state = torch.get_rng_state()
    torch.testing.assert_close(layer(x), layer(x), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mask_keeps_or_drops_whole_elements_and_rescales(make_layer: Maker) -> None:
    """A second relu layer made the identity shows the mask: 0 or 1/(1-p) of its input."""
    deep = make_layer("RNN", WIDTH, H, 2, "relu", dropout=0.25, dtype=torch.float64)
    with torch.no_grad():
        for name in ("weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
            deep.get_parameter(name).zero_()
        deep.weight_ih_l1.copy_(torch.eye(H))
    x = torch.randn(50, B, WIDTH, dtype=torch.float64)
    dropped, _ = deep(x)
    kept, _ = deep.eval()(x)
    alive = kept != 0
    ratios = (dropped[alive] / kept[alive]).detach()
    is_zero = ratios == 0
    torch.testing.assert_close(ratios[~is_zero], torch.full_like(ratios[~is_zero], 1 / 0.75))
    share = float(is_zero.double().mean())
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / ratios.numel()) ** 0.5
