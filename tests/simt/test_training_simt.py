"""Training as people do it by the CUDA kernels on the executor: twins of
tests/gpu/test_training_cuda.py."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import rnnfast

from ..cuda_cases import forced
from ..training_cases import (
    KINDS,
    Model,
    assert_near,
    batches,
    eager_steps,
    loss_of,
    scaled_training,
    whole_steps,
)
from .backend import Simt

STRATEGIES = ["stepwise", "resident", "grid:blocks=3", ""]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_grad_scaler_under_autocast(simt: Simt, kind: str, low: torch.dtype) -> None:
    ours, theirs = KINDS[kind]
    expected, scales = scaled_training(theirs, "cpu", None, steps=3)
    with rnnfast.use_backend("simt"):
        found, own_scales = scaled_training(ours, "cpu", low, steps=3)
    assert own_scales == scales
    assert_near(found, expected, 4 * torch.finfo(low).eps)
    assert simt.ops.launches()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("simt")
def test_an_overflow_skips_the_step(kind: str, low: torch.dtype) -> None:
    ours, _ = KINDS[kind]
    with rnnfast.use_backend("simt"):
        found, scales = scaled_training(ours, "cpu", low, overflow_at=1, steps=2)
        before, _ = scaled_training(ours, "cpu", low, steps=1)
    assert scales == [2.0**12, 2.0**11]
    for name, value in before.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.usefixtures("simt")
def test_whole_steps(strategy: str) -> None:
    expected = whole_steps(nn.LSTM, "cpu", eager_steps, steps=2)
    math = "tf32" if strategy.startswith("grid") else "float32"
    with forced(strategy, math), rnnfast.use_backend("simt"):
        found = whole_steps(rnnfast.LSTM, "cpu", eager_steps, steps=2)
    assert_near(found, expected, 1e-2 if math == "tf32" else 1e-5)


@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.usefixtures("simt")
def test_two_threads_at_once(strategy: str) -> None:
    """As two streams are: models of other sizes, each in a thread of its own."""
    models = [Model(rnnfast.LSTM, "cpu", torch.float32) for _ in range(2)]
    models[1].layer = rnnfast.LSTM(8, 24, num_layers=1)
    given = list(batches("cpu", torch.float32, 2))
    found: dict[int, list[torch.Tensor]] = {}

    def train(k: int) -> None:
        with rnnfast.use_backend("simt"):
            loss_of(models[k], *given[k]).backward()
        found[k] = [p.grad for p in models[k].parameters()]

    with forced(strategy):
        threads = [threading.Thread(target=train, args=(k,)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together = dict(found)
        for k, model in enumerate(models):
            model.zero_grad()
            train(k)
    for k in range(2):
        assert all(map(torch.equal, together[k], found[k]))
