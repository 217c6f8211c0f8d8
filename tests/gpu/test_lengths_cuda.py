"""Lengths out of range on a device; tests/simt/test_lengths.py is the twin."""

from __future__ import annotations

import os

import pytest

from rnnfast.backends import registry

from ..cuda_cases import RESIDENT_CELLS
from ..length_cases import CELLS, PLANS, assert_within_the_steps

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic, as `poisoned` asks for
CUDA = registry.BACKENDS["cuda"]
UNUSABLE = CUDA.unusable()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(UNUSABLE is not None, reason=str(UNUSABLE))]


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize(("plan", "math"), PLANS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("poisoned")
def test_lengths_count_within_the_steps(cell: str, plan: str, math: str, reverse: bool) -> None:
    if plan != "stepwise" and cell not in RESIDENT_CELLS:
        pytest.skip(f"no kernel keeps the weights of {cell}")
    try:
        assert_within_the_steps(CUDA, "cuda", cell, plan, math, reverse)
    except ValueError as error:
        if "RNNFAST_PLAN asks for" not in str(error):
            raise
        pytest.skip(f"this device: {error}")
