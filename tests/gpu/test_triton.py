"""The Triton kernels on a real device: what tests/triton/interpreted asks of the interpreter."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from rnnfast.backends import registry
from rnnfast.cells import CellSpec
from rnnfast.problem import problem_of
from rnnfast.triton import graphs, tune

from ..cases import BUILT_IN, leaves, scan_of
from ..steps.test_own_cpu import CALLS
from ..triton import checks

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic, as `poisoned` asks for
BACKEND = registry.BACKENDS["triton"]
UNUSABLE = BACKEND.unusable() if os.environ.get("TRITON_INTERPRET") != "1" else "the interpreter's"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(UNUSABLE is not None, reason=str(UNUSABLE)),
    pytest.mark.usefixtures("poisoned"),
]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No graphs, no measured plans."""
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.setenv(tune.SWITCH, "0")
    monkeypatch.setattr(graphs, "GRAPHS", graphs.Graphs())


def on_gpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cuda()


def on_the_last(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.device("cuda", torch.cuda.device_count() - 1))


def two_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")


def fits(cell: str, strategy: str) -> None:
    """What no resident kernel of this device can take is skipped with the backend's reason."""
    case = replace(checks.EVERYTHING, cell=cell)
    scan = scan_of(case, leaves(case, torch.float32, "cuda"))
    with checks.demanded(strategy):
        reason = BACKEND.why_not(problem_of(scan))
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("math", checks.STORED)
@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("strategy", checks.STRATEGIES)
def test_values(strategy: str, cell: str, math: str) -> None:
    fits(cell, strategy)
    checks.check_values(cell, strategy, math, "cuda")


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("strategy", checks.STRATEGIES)
def test_lengths_out_of_range(strategy: str, cell: str, reverse: bool) -> None:
    fits(cell, strategy)
    checks.check_lengths(cell, strategy, reverse, on_gpu)


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
def test_lengths_out_of_range_of_a_cell_of_ones_own(reverse: bool) -> None:
    checks.check_lengths("layer_norm_lstm", "stepwise", reverse, on_gpu)


@pytest.mark.parametrize(
    "call", ["all states", "reversed ends and resets", "clipped in time", "one sequence", "tokens"]
)
@pytest.mark.parametrize("spec", checks.OWN, ids=lambda spec: spec.name.rpartition(":")[2])
def test_cells_of_ones_own(spec: CellSpec, call: str) -> None:
    checks.check_own(spec, torch.float32, "cuda", **CALLS[call])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", checks.OWN, ids=lambda spec: spec.name.rpartition(":")[2])
def test_cells_of_ones_own_in_16_bit(spec: CellSpec, dtype: torch.dtype) -> None:
    checks.check_own(spec, dtype, "cuda", ends=True, all_states=True)


@pytest.mark.parametrize("cell", checks.OF_EACH_WAY)
def test_stepwise_graphs(cell: str) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        checks.check_graphs(cell, on_gpu)
    kept = list(graphs.GRAPHS._kept.values())
    assert len(kept) == 2  # forward, backward
    assert None not in kept


def test_addresses_that_are_aligned_otherwise_than_a_graphs() -> None:
    checks.check_odd_addresses(on_gpu)


@pytest.mark.parametrize("strategy", checks.STRATEGIES)
def test_a_graph_of_the_callers(strategy: str) -> None:
    fits("gru", strategy)
    checks.check_a_callers_graph(strategy, on_gpu)


def test_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is fastest, the results are right, and both passes are in the file."""
    monkeypatch.delenv(tune.SWITCH)
    checks.check_values("gru", "auto", "float32", "cuda")
    text = tune.cache_file().read_text(encoding="utf-8")
    assert text.count(f"{torch.cuda.get_device_name()} |") == 2


def test_a_device_that_is_not_the_current_one() -> None:
    two_devices()
    for strategy in checks.STRATEGIES:
        for cell in checks.OF_EACH_WAY:
            checks.check_lengths(cell, strategy, True, on_the_last)
    checks.check_graphs("gru", on_the_last)
    checks.check_a_callers_graph("stepwise", on_the_last)
    checks.check_lists(on_the_last)
    assert torch.cuda.current_device() == 0


def test_lists() -> None:
    checks.check_lists(on_gpu)


def test_lists_that_are_not_taken() -> None:
    checks.check_lists_that_are_not_taken(on_gpu)
