"""Lengths out of range on the executor: the twin of tests/gpu/test_lengths_cuda.py."""

from __future__ import annotations

import pytest

from ..cuda_cases import RESIDENT_CELLS
from ..length_cases import CELLS, PLANS, assert_within_the_steps
from .backend import Simt


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
@pytest.mark.parametrize(("plan", "math"), PLANS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("poisoned")
def test_lengths_count_within_the_steps(
    simt: Simt, cell: str, plan: str, math: str, reverse: bool
) -> None:
    if plan != "stepwise" and cell not in RESIDENT_CELLS:
        pytest.skip(f"no kernel keeps the weights of {cell}")
    assert_within_the_steps(simt, "cpu", cell, plan, math, reverse)
