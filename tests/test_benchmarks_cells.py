"""benchmarks/cells.py: peers compute the same, or are told and not timed."""

from __future__ import annotations

import time

import pytest
import torch

import rnnfast
from benchmarks import cell_peers, cells
from benchmarks.cell_peers import Call, EagerLoop, OutOfTime, limited, peers
from tests import own_cells

T, B, I, H = 5, 2, 3, 4


@pytest.fixture(params=["peephole_lstm", "layer_norm_lstm"])
def layer(request: pytest.FixtureRequest) -> rnnfast.Recurrent:
    return rnnfast.Recurrent(request.param, I, H)


class Slow(Call):
    def __call__(self) -> None:
        raise OutOfTime  # as the alarm does


class Wrong(Call):
    def __call__(self) -> None:
        super().__call__()
        for weight in self.layer.parameters():
            weight.grad *= 1.001


def test_peers_are_checked_before_they_are_timed(
    layer: rnnfast.Recurrent, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "eager loop": lambda layer, x: Call(EagerLoop(layer), x),
        "slow": lambda layer, x: Slow(EagerLoop(layer), x),
        "wrong": lambda layer, x: Wrong(EagerLoop(layer), x),
        "JAX lax.scan": cell_peers.JaxScan,
    }
    monkeypatch.setattr(cell_peers, "PEERS", made)
    monkeypatch.setattr(cell_peers.importlib.util, "find_spec", lambda name: None)
    told: list[str] = []
    x = torch.randn(T, B, I)
    found = [name for name, _ in peers(layer, x, 300.0, told.append)]
    assert found == ["eager loop"]
    slow, wrong, jax = told
    assert slow.strip() == "slow: not compiled within 300 s"
    assert wrong.startswith("  wrong: wrong by ")
    assert jax.strip() == "JAX lax.scan: not installed"


def test_jax_computes_the_same() -> None:
    pytest.importorskip("jax")
    for cell in (own_cells.lstm, "layer_norm_lstm"):
        layer = rnnfast.Recurrent(cell, I, H)
        x = torch.randn(T, B, I)
        found, expected = cell_peers.JaxScan(layer, x).gradient(), Call(layer, x).gradient()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_limit_of_time() -> None:
    with limited(5.0):
        pass
    with pytest.raises(OutOfTime), limited(0.05):
        time.sleep(5)


def test_what_is_compared_is_there() -> None:
    made = cells.layers(cells.Size(2, 1, 3, 4))
    assert {name for pair in cells.PAIRS for name in pair} | set(cells.WITH_PEERS) <= set(made)
