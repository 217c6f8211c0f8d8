"""What tests/gpu/test_triton.py asks of a GPU, of the interpreter; of graphs and devices
test_devices.py asks."""

from __future__ import annotations

import pytest

from ...cases import BUILT_IN
from .. import checks

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("math", checks.STORED)
@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("strategy", checks.STRATEGIES)
def test_values(strategy: str, cell: str, math: str) -> None:
    checks.check_values(cell, strategy, math, "cpu")


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
@pytest.mark.parametrize("cell", BUILT_IN)
@pytest.mark.parametrize("strategy", checks.STRATEGIES)
def test_lengths_out_of_range(strategy: str, cell: str, reverse: bool) -> None:
    checks.check_lengths(cell, strategy, reverse, checks.as_it_is)
