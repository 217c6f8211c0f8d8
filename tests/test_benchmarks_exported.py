"""benchmarks/exported.py: what was exported is the same layer, and what is measured is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rnnfast
from benchmarks import exported, table

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own


def test_what_is_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "LAYERS", {"`GRU`": (rnnfast.GRU, {})})
    path = tmp_path / "exported.csv"
    exported.main(["--seconds", "0.02", "--out", str(path)])
    (row,) = table.read_csv(path, exported.Row)
    assert row.layer == "`GRU`"
    assert min(row.onnx_ms, row.rnnfast_ms, row.ratio) > 0


def test_another_layer_is_not_timed() -> None:
    layer, x = rnnfast.GRU(exported.I, exported.H).eval(), torch.randn(5, 2, exported.I)
    ours = exported.Layer(layer, x)
    with torch.no_grad():
        exported.check(lambda: ours().numpy(), ours)  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="off by"):
            exported.check(lambda: (layer(x)[0] + 1e-3).numpy(), ours)  # type: ignore[arg-type]
