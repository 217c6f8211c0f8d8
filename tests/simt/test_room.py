"""What a device has no room for is never launched: the plan asks, and says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import rnnfast

from ..cases import Case
from ..cuda_cases import Run, check, forced
from .backend import Simt

SMS, LARGEST_CLUSTER = 132, 16  # of the executor's device
REGISTERS = 254  # as nvcc gives them: a block fills an SM


@pytest.fixture
def small(simt: Simt) -> Iterator[Simt]:
    """A device that is planned for as an H100, and has less."""
    simt.ops.set_device(4, 1, REGISTERS)
    yield simt
    simt.ops.set_device(SMS, LARGEST_CLUSTER, 0)


@pytest.mark.parametrize("strategy", ["cluster", "grid"])
def test_room_is_what_the_executor_has(simt: Simt, strategy: str) -> None:
    asked = ("lstm", strategy, "bf16", [0, 8, 1, 1], False, 128, 0)
    before = simt.ops.cuda_room(*asked)
    assert before >= 8
    simt.ops.set_device(4, 1, REGISTERS)
    try:
        assert simt.ops.cuda_room(*asked) == (0 if strategy == "cluster" else 4)
    finally:
        simt.ops.set_device(SMS, LARGEST_CLUSTER, 0)


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_no_kernel_has_no_room(simt: Simt, backward: bool) -> None:
    for cell, choice, message in (
        ("lstm_proj", [0, 8, 1, 1], "no kernel for lstm_proj"),
        ("lstm", [99, 8, 1, 1], "there is no such shape"),
    ):
        with pytest.raises(ValueError, match=message):
            simt.ops.cuda_room(cell, "grid", "bf16", choice, backward, 128, 0)
    with pytest.raises(RuntimeError, match="no teams are called 'solo'"):
        simt.ops.cuda_room("lstm", "solo", "bf16", [0, 8, 1, 1], backward, 128, 0)


def test_a_small_device_gets_what_it_has_room_for(small: Simt) -> None:
    layer = rnnfast.LSTM(3, 600, dtype=torch.bfloat16)
    with rnnfast.use_backend("simt"):
        text = str(rnnfast.explain(layer, torch.randn(4, 2, 3, dtype=torch.bfloat16)))
    assert "the driver has no room for" in text
    check(Run("", "bfloat16", Case("lstm", T=4, B=2, I=3, H=600)), "simt")
    assert not any(name.startswith("team_") for name in small.ops.launches())


def test_a_forced_team_without_room_is_an_error(small: Simt) -> None:
    layer = rnnfast.LSTM(3, 64, dtype=torch.bfloat16)
    x = torch.randn(4, 2, 3, dtype=torch.bfloat16)
    with (
        rnnfast.use_backend("simt"),
        forced("grid:blocks=8"),
        pytest.raises(ValueError, match="the driver has no room for"),
    ):
        layer(x)
