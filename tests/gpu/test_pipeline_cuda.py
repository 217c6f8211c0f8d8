"""Layers pipelined over the streams of a real device: tests/simt/test_pipeline.py there."""

from __future__ import annotations

import pytest
import torch

import rnnfast
from rnnfast.backends import registry

from ..cuda_cases import forced
from ..pipeline_cases import LAYERS, assert_same, results

UNUSABLE = registry.BACKENDS["cuda"].unusable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(UNUSABLE is not None, reason=str(UNUSABLE))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", LAYERS)
def test_pipelined_layers_give_the_same(
    monkeypatch: pytest.MonkeyPatch, cell: str, dtype: torch.dtype
) -> None:
    """Bit by bit in what rnnfast computes; cuBLAS may round another number of rows otherwise."""
    torch.manual_seed(0)
    layer = LAYERS[cell](8, 64, num_layers=4, dtype=dtype, device="cuda")
    x = torch.randn(203, 16, 8, dtype=dtype, device="cuda")
    more = {"lengths": torch.randint(1, 204, (16,), device="cuda")}
    with forced("resident"):
        expected = results(layer, x, "cuda", **more)
        monkeypatch.setenv("RNNFAST_PIPELINE", "32")
        found = results(layer, x, "cuda", **more)
        again = results(layer, x, "cuda", **more)
    assert_same(found, again)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name, **close)


def test_a_pipeline_can_be_captured_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_PIPELINE", "8")
    layer = rnnfast.LSTM(8, 32, num_layers=3, device="cuda")
    x = torch.randn(40, 4, 8, device="cuda")
    with forced("resident"), torch.no_grad(), rnnfast.use_backend("cuda"):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            expected, _ = layer(x)  # warms up what torch allocates once
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured, _ = layer(x)
        captured.fill_(torch.nan)
        graph.replay()
    torch.testing.assert_close(captured, expected)
