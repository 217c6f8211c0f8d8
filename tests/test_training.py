"""Twins of tests/gpu/test_training_cuda.py: training as people do it, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnfast

from .cases import taking
from .training_cases import (
    KINDS,
    assert_near,
    distributed_steps,
    eager_steps,
    mean_gradients,
    scaled_training,
    whole_steps,
)

BACKENDS = pytest.mark.parametrize("backend", taking(torch.float32))


@BACKENDS
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_grad_scaler_under_autocast(kind: str, low: torch.dtype, backend: str) -> None:
    ours, theirs = KINDS[kind]
    expected, scales = scaled_training(theirs, "cpu", None)
    with rnnfast.use_backend(backend):
        try:
            found, own_scales = scaled_training(ours, "cpu", low)
        except rnnfast.BackendError as error:
            pytest.skip(str(error))
    assert own_scales == scales
    assert_near(found, expected, 4 * torch.finfo(low).eps)


@BACKENDS
@pytest.mark.parametrize("kind", KINDS)
def test_an_overflow_skips_the_step(kind: str, backend: str) -> None:
    ours, _ = KINDS[kind]
    with rnnfast.use_backend(backend):
        try:
            found, scales = scaled_training(ours, "cpu", torch.bfloat16, overflow_at=2, steps=3)
        except rnnfast.BackendError as error:
            pytest.skip(str(error))
        before, _ = scaled_training(ours, "cpu", torch.bfloat16, steps=2)
    assert scales == [2.0**12, 2.0**12, 2.0**11]
    for name, value in before.items():
        assert torch.equal(found[name], value), name


@BACKENDS
@pytest.mark.parametrize("kind", KINDS)
def test_whole_steps(kind: str, backend: str) -> None:
    ours, theirs = KINDS[kind]
    expected = whole_steps(theirs, "cpu", eager_steps)
    with rnnfast.use_backend(backend):
        assert_near(whole_steps(ours, "cpu", eager_steps), expected, 1e-5)


WORKER = """
import sys, torch
from tests.training_cases import KINDS, distributed_steps
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.save(distributed_steps(rank, 2, "cpu", store, KINDS["lstm"][0]), out)
"""


def test_gradients_beside_an_all_reduce(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), out], cwd=root
        )
        for rank, out in enumerate(map(str, outs))
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    expected = mean_gradients("cpu", 2, KINDS["lstm"][1])
    for out in outs:
        assert_near(torch.load(out), expected, 1e-5)


def test_one_process_is_a_world_too(tmp_path: Path) -> None:
    found = distributed_steps(0, 1, "cpu", str(tmp_path / "store"), KINDS["gru"][0])
    assert_near(found, mean_gradients("cpu", 1, KINDS["gru"][1]), 1e-5)
