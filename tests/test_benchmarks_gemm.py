"""benchmarks/gemm.py: what it multiplies, and that it says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gemm, roofs, table
from rnnfast import _ext

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")
)


def test_the_products_are_those_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SIZES", [(3, 2, 5, 7)])
    found = {(product.group, product.what): product for product in gemm.of_layers()}
    assert len(found) == 12  # of cells with 4, 3 and 1 gates
    for what, gates, sizes in (
        ("input", 4, (6, 5, 28)),
        ("dW_ih", 4, (28, 6, 5)),
        ("dW_hh", 3, (21, 6, 7)),
        ("dx", 1, (6, 7, 5)),
    ):
        product = found[f"T3 B2 I5 H7 G{gates}", what]
        assert (*product.left.shape, product.right.shape[1]) == sizes
    assert found["T3 B2 I5 H7 G1", "dx"].flops == 2 * 6 * 7 * 5


def test_what_is_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = gemm.Product("all", "small", torch.randn(8, 16), torch.randn(16, 24), torch.randn(24))
    monkeypatch.setattr(gemm, "large", lambda: [small])
    monkeypatch.setattr(gemm, "of_layers", lambda: [])
    path = tmp_path / "gemm.csv"
    gemm.main(["--seconds", "0.02", "--threads", "1", "--out", str(path)])
    (row,) = table.read_csv(path, gemm.Row)
    assert (row.group, row.what, row.M, row.K, row.N) == ("all", "small", 8, 16, 24)
    assert min(row.torch_gflops, row.ours_gflops, row.ratio) > 0
    assert gemm.line(row, 100.0).count("%") == 2
    assert json.loads(path.with_suffix(".json").read_text())["peak_gflops"] > 0


def test_the_peak_is_that_of_all_threads() -> None:
    module = _ext.cpu()
    assert module is not None
    one, two = (module.cpu_multiply_adds(10, threads) for threads in (1, 2))
    assert two == 2 * one > 0
    assert roofs.multiply_adds(1, 0.01) > 0
