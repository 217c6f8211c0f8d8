"""Training as people do it, on a GPU; tests/test_training.py and tests/simt have the twins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rnnfast

from ..training_cases import (
    KINDS,
    Model,
    assert_near,
    batches,
    captured_steps,
    distributed_steps,
    eager_steps,
    loss_of,
    mean_gradients,
    scaled_training,
    whole_steps,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
STRATEGIES = ["stepwise", "resident", "grid:blocks=3", ""]


@pytest.fixture(autouse=True, params=["cuda", "triton"])
def _backend(request: pytest.FixtureRequest):
    with rnnfast.use_backend(request.param):
        yield


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_grad_scaler_under_autocast(kind: str, low: torch.dtype) -> None:
    ours, theirs = KINDS[kind]
    expected, scales = scaled_training(theirs, "cuda", None)
    found, own_scales = scaled_training(ours, "cuda", low)
    assert own_scales == scales
    assert_near(found, expected, 4 * torch.finfo(low).eps)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_skips_the_step(kind: str, low: torch.dtype) -> None:
    ours, _ = KINDS[kind]
    found, scales = scaled_training(ours, "cuda", low, overflow_at=2, steps=3)
    before, _ = scaled_training(ours, "cuda", low, steps=2)
    assert scales == [2.0**12, 2.0**12, 2.0**11]
    for name, value in before.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_step_as_one_graph(
    kind: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNFAST_PLAN", strategy)
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if strategy.startswith("grid") else "ieee"
    try:
        ours, _ = KINDS[kind]
        expected = whole_steps(ours, "cuda", eager_steps)
        assert_near(whole_steps(ours, "cuda", captured_steps), expected, 1e-5)
    finally:
        torch.backends.cudnn.rnn.fp32_precision = "ieee"


@pytest.mark.parametrize("free", ["0", "16"])
def test_gradients_beside_an_all_reduce(
    free: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNFAST_FREE_SMS", free)
    found = distributed_steps(0, 1, "cuda", str(tmp_path / "store"), KINDS["lstm"][0])
    assert_near(found, mean_gradients("cuda", 1, KINDS["lstm"][1]), 1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_streams_at_once(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_PLAN", strategy)
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if strategy.startswith("grid") else "ieee"
    try:
        models = [Model(rnnfast.LSTM, "cuda", torch.float32) for _ in range(2)]
        given = list(batches("cuda", torch.float32, 2))
        streams = [torch.cuda.Stream() for _ in models]
        torch.cuda.synchronize()
        for _ in range(3):
            for model, (x, y), stream in zip(models, given, streams, strict=True):
                with torch.cuda.stream(stream):
                    model.zero_grad()
                    loss_of(model, x, y).backward()
        torch.cuda.synchronize()
        for model, (x, y) in zip(models, given, strict=True):
            found = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            loss_of(model, x, y).backward()
            assert all(map(torch.equal, found, [p.grad for p in model.parameters()]))
    finally:
        torch.backends.cudnn.rnn.fp32_precision = "ieee"
