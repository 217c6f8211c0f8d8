"""benchmarks/cells.py: peers compute the same, or are told and not timed."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

import rnnfast
from benchmarks import cell_peers, cells, table
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
    loop, slow, wrong, jax = peers(layer, torch.randn(T, B, I), 300.0)
    assert loop[0] == "eager loop"
    assert loop[1] is not None
    assert slow == ("slow", None, "not compiled within 300 s")
    assert wrong[:2] == ("wrong", None)
    assert wrong[2].startswith("wrong by ")
    assert jax == ("JAX lax.scan", None, "not installed")


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


def test_the_limit_ends_no_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.3)\ndone = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        importlib.import_module("slow_to_import")
        time.sleep(5)

    with pytest.raises(OutOfTime), limited(0.05):
        work()
    assert sys.modules["slow_to_import"].done


@pytest.mark.parametrize("how", ["another error", "goes on"])
def test_the_limit_is_not_lost_in_what_catches_errors(how: str) -> None:
    def work() -> None:
        try:
            time.sleep(5)
        except Exception as error:
            if how == "another error":
                raise RuntimeError("the backend failed") from error

    with pytest.raises(OutOfTime), limited(0.05):
        work()


def test_what_is_allowed_is_what_torch_is_off_by() -> None:
    """Of 200 steps with LayerNorm, float32 leaves fewer digits than of 5."""
    for steps in (5, 200):
        layer = rnnfast.Recurrent("layer_norm_lstm", 16, 32)
        x = torch.randn(steps, 4, 16)
        exact, allowed = cell_peers.yardstick(layer, x)
        assert exact.dtype == torch.float64
        loop = cell_peers.largest_error(Call(EagerLoop(layer), x).gradient(), exact)
        assert 2 * loop < allowed <= 2 * loop + 1e-6 * float(exact.abs().max())
        assert cell_peers.largest_error(Call(layer, x).gradient(), exact) <= allowed
        far = cell_peers.largest_error(1.01 * Call(layer, x).gradient(), exact)
        assert far > allowed


def test_what_is_compared_is_there() -> None:
    made = cells.layers(cells.Size(2, 1, 3, 4))
    assert {name for pair in cells.PAIRS for name in pair} | set(cells.WITH_PEERS) <= set(made)


def test_what_is_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = {"eager loop": cell_peers.PEERS["eager loop"], "slow": lambda layer, x: Slow(layer, x)}
    monkeypatch.setattr(cell_peers, "PEERS", loop)
    monkeypatch.setattr(cells, "SIZES", (cells.Size(2, 1, 3, 4),))
    monkeypatch.setattr(cells, "PAIRS", cells.PAIRS[-1:])
    monkeypatch.setattr(cells, "WITH_PEERS", cells.WITH_PEERS[:1])
    monkeypatch.setattr(cells, "compile_times", lambda: [cells.Compiled("a", 0.1, 2.0, 0.01)])
    cells.main(["--seconds", "0.02", "--threads", "1", "--out", str(tmp_path)])
    pair, timed, left_out = table.read_csv(tmp_path / "cells.csv", cells.Row)
    assert (pair.size, pair.second) == ("T2 B1 I3 H4", "LSTM of torch.nn")
    assert min(pair.first_ms, timed.ratio) > 0
    assert left_out.reason == "not compiled within 60 s"
    assert table.read_csv(tmp_path / "compile.csv", cells.Compiled)[0].compile_s == 2.0
    facts = json.loads((tmp_path / "cells.json").read_text())
    assert facts["threads"] == 1


def test_compiling_is_timed_in_an_empty_cache() -> None:
    before = os.environ.get("RNNFAST_CACHE")
    with cells.empty_cache():
        assert os.environ["RNNFAST_CACHE"] != before
        assert list(Path(os.environ["RNNFAST_CACHE"]).iterdir()) == []
    assert os.environ.get("RNNFAST_CACHE") == before
