"""pytest-benchmark's view of the cases: `pytest benchmarks --benchmark-only`.

Its two sides run one after the other, not in alternation, so its ratios drift with the machine;
`python -m benchmarks.run` is the one to quote. RNNFAST_BACKEND chooses the backend.
"""

from __future__ import annotations

import pytest
import torch

from . import gate, workload
from .cases import CASES, Case


@pytest.fixture(autouse=True)
def _only_on_request(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("benchmark_only", default=False):
        pytest.skip("timings are taken with --benchmark-only")


@pytest.mark.parametrize("side", ["torch.nn", "rnnfast"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_step(case: Case, side: str, benchmark) -> None:  # type: ignore[no-untyped-def]
    reference, candidate = workload.build(
        case, side, dtype=torch.float32, device="cpu", mode="train"
    )
    verdict = gate.check(reference, candidate)
    assert verdict.passed, verdict.reason
    benchmark.group = case.name
    benchmark.extra_info["flops"] = case.training_flops
    benchmark.pedantic(candidate, setup=candidate.prepare, rounds=10, warmup_rounds=2)
