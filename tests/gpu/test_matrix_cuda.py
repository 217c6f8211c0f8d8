"""The matrix of the CUDA kernels on a real device: what tests/simt runs on the CPU."""

from __future__ import annotations

import os

import pytest
import torch

from rnnfast.backends import registry

from ..cases import BUILT_IN, Case, leaves, run, scan_of
from ..cuda_cases import EVERYTHING, LARGE, SIZES, TEAMS, Run, check, forced, matrix

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic, as `poisoned` asks for
UNUSABLE = registry.BACKENDS["cuda"].unusable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(UNUSABLE is not None, reason=str(UNUSABLE))]


def check_on_device(asked: Run, route: str = "eager") -> None:
    try:
        check(asked, "cuda", "cuda", route)
    except ValueError as error:
        if "RNNFAST_PLAN asks for" not in str(error):
            raise
        pytest.skip(f"this device: {error}")


@pytest.mark.parametrize("asked", matrix(SIZES + LARGE, options=True), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_kernels_agree_with_the_naive_loop(asked: Run) -> None:
    check_on_device(asked)


@pytest.mark.parametrize("asked", matrix(SIZES + LARGE, options=True, strategies=TEAMS), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_teams_agree_with_the_naive_loop(asked: Run) -> None:
    check_on_device(asked)


@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("math", ["float64", "float32", "tf32", "bfloat16", "float16"])
@pytest.mark.usefixtures("poisoned")
def test_the_plan_of_the_cost_model(cell: str, math: str) -> None:
    case = Case(cell, T=12, B=9, I=5, H=72, **EVERYTHING)
    check_on_device(Run("", math, case))


@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru", "gru_reset_before"])
def test_a_forward_can_be_captured_in_a_graph(cell: str, strategy: str) -> None:
    case = Case(cell, T=5, B=9, H=24, lengths=True)
    scan = scan_of(case, leaves(case, torch.float32, "cuda"), training=False)
    backend = registry.BACKENDS["cuda"]
    with forced(strategy), torch.no_grad():
        expected = backend.forward(scan)[0]
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            backend.forward(scan)  # warms up what torch allocates once
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = backend.forward(scan)[0]
        captured.y.fill_(torch.nan)
        graph.replay()
    assert torch.equal(captured.y, expected.y)


def test_two_runs_agree_bit_by_bit() -> None:
    case = Case("lstm", T=40, B=33, I=8, H=100, **EVERYTHING)
    for strategy in ("stepwise", "resident", "grid:blocks=3,teams=2"):
        with forced(strategy):
            first, second = (run(case, "cuda", torch.bfloat16, device="cuda") for _ in range(2))
        for name, value in first.items():
            assert torch.equal(value, second[name]), f"{strategy}: {name}"
