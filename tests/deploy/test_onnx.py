"""torch.onnx.export of the layers as it is, checked by onnxruntime."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from .onnx_models import LAYERS, NODES, Case, cases, check

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra deploy-tests)")


@pytest.fixture(scope="module", autouse=True)
def _one_registry() -> Iterator[None]:
    """torch makes its registry of translations anew at each export, which takes a second; here it
    makes one."""
    kind = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    make = functools.lru_cache(maxsize=None)(kind.from_torchlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "from_torchlib", staticmethod(make))
        yield


FEW = {
    "reverse": Case("lstm", bidirectional=True, batch_first=True, bias=False),
    "states": Case("gru", layers=2, bidirectional=True, states=True),
    "lengths": Case("lstm", layers=2, bidirectional=True, states=True, lengths=True),
    "lengths, gru": Case("gru_reset_before", bidirectional=True, states=True, lengths=True),
    "lengths, loop": Case("lstm_proj", bidirectional=True, states=True, lengths=True),
    "resets": Case("gru", resets=True, states=True, lengths=True),
    "all states": Case("lstm", all_states=True),
    "all states, gru": Case("gru", all_states=True, lengths=True),
    "one step, one sequence": Case("lstm", example=(1, 1)),
    "tokens": Case("gru", tokens=True, lengths=True),
    "tokens, many": Case("lstm", tokens=True, lengths=True, I=30),
    "float16": Case("lstm", dtype=torch.float16, layers=2, states=True),
    "bfloat16": Case("gru", dtype=torch.bfloat16, layers=2, states=True),
    "bfloat16, loop": Case("mgu", dtype=torch.bfloat16),
    "float64": Case("lstm", dtype=torch.float64),
}


@pytest.mark.parametrize("layer", [*NODES, "mgu", "own_three_states"])
def test_a_layer(layer: str) -> None:
    check(Case(layer))


@pytest.mark.parametrize("layer", sorted(LAYERS.keys() - NODES.keys()))
def test_a_layer_that_is_a_loop(layer: str) -> None:
    check(Case(layer, states=True, lengths=True))


@pytest.mark.parametrize("what", FEW)
def test_what_a_layer_is_given(what: str) -> None:
    check(FEW[what])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_random_models(part: int) -> None:
    @seed(part)
    @settings(
        max_examples=50,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking would export hundreds of models more
    )
    @given(case=cases)
    def agrees(case: Case) -> None:
        check(case)

    agrees()
