"""benchmarks/gemm.py: what it multiplies, and that it says what it measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gemm, roofs
from rnnfast import _ext

pytestmark = pytest.mark.skipif(
    _ext.why_no_cpu() is not None, reason=str(_ext.why_no_cpu() or "built")
)


def test_the_products_are_those_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "SIZES", [(3, 2, 5, 7)])
    found = {product.name: product for product in gemm.of_layers()}
    assert len(found) == 12  # of cells with 4, 3 and 1 gates
    assert found["T3 B2 I5 H7 G4 input"].sizes == "6x5x28"
    assert found["T3 B2 I5 H7 G4 dW_ih"].sizes == "28x6x5"
    assert found["T3 B2 I5 H7 G3 dW_hh"].sizes == "21x6x7"
    assert found["T3 B2 I5 H7 G1 dx"].sizes == "6x7x5"
    assert found["T3 B2 I5 H7 G1 dx"].flops == 2 * 6 * 7 * 5


def test_a_line_has_both_rates_and_their_ratio() -> None:
    product = gemm.Product("small", torch.randn(8, 16), torch.randn(16, 24), torch.randn(24))
    ratio, line = gemm.compare(product, 0.02, 1e9)
    assert ratio > 0
    assert line.split()[:2] == ["small", "8x16x24"]
    assert line.count("%") == 2


def test_the_peak_is_that_of_all_threads() -> None:
    module = _ext.cpu()
    assert module is not None
    one, two = (module.cpu_multiply_adds(10, threads) for threads in (1, 2))
    assert two == 2 * one > 0
    assert roofs.multiply_adds(1, 0.01) > 0
