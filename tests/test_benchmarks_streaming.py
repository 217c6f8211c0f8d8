"""benchmarks/streaming.py: every peer is checked before it is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import streaming, streaming_onnx, table
from rnnfast import _ext

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")
)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_peers_are_the_same_layer(kind: str) -> None:
    with torch.no_grad():
        streaming.check(streaming.steps(kind, 12, 2), kind, 12, 2)
        found = streaming.steps(kind, 12, 2)
        cell = found["torch.nn cell"]
        found["torch.nn cell"] = lambda x: cell(x) + 1e-3
        with pytest.raises(AssertionError, match="cell: off by"):
            streaming.check(found, kind, 12, 2)


def test_what_is_measured_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(streaming, "with_onnx", lambda *args: streaming.Timed(3.0, 2.0))
    path = tmp_path / "streaming.csv"
    few = ["--sizes", "8", "--seconds", "0.02", "--onnx", "some python", "--out", str(path)]
    streaming.main(few)
    rows = table.read_csv(path, streaming.Row)
    peers = ["torch.nn layer", "torch.nn cell", "rnnfast layer", "Stream"]
    peers += ["Stream bfloat16", "Stream int8", "ONNX Runtime"]
    for cell in ("LSTM", "GRU", "RNN"):
        assert sorted(row.peer for row in rows if row.cell == cell) == sorted(peers)
    assert all(row.q1_us > 0 and (row.hidden, row.batch) == (8, 1) for row in rows)
    assert rows[-1] == streaming.Row("RNN", 8, 1, "ONNX Runtime", 3.0, 2.0)
    assert json.loads(path.with_suffix(".json").read_text())["threads"] == 1


def test_onnx_runs_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its interpreter is given the layer and prints seconds of batches of calls."""
    fake = tmp_path / "python"
    seconds = [streaming.CALLS * 1e-6 * k for k in (1, 2, 3, 4)]
    fake.write_text(f"#!/bin/sh\ncp $2 {tmp_path}/seen.json\necho '{json.dumps(seconds)}'\n")
    fake.chmod(0o755)
    with torch.no_grad():
        timed = streaming.with_onnx(str(fake), "GRU", 4, 2, 0.1)
    assert timed.median == pytest.approx(2.5)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [len(w) for w in seen["weights"]] == [48, 48, 12, 12]
    assert set(seen["kind"]) <= set("".join(streaming_onnx.ORDER))
