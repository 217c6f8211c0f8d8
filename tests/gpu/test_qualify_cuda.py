"""`python -m rnnfast tune` on a device, for one case: by its own processes (tests/simt and
tests/test_qualified.py have the rest)."""

from __future__ import annotations

import pytest

from rnnfast.backends import registry
from rnnfast.backends.qualified import ABSENT, BACKENDS, RIGHT
from rnnfast.qualify import Case, qualify, ways

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_plan_takes_is_right_and_timed(backend: str) -> None:
    if (missing := registry.BACKENDS[backend].unusable()) is not None:
        pytest.skip(missing)
    planned = [way for way in ways(backend) if way.strategy in ("", "stepwise")]
    found = qualify(planned, [Case("lstm", "bfloat16", True, 5, 4, 64)], "cuda:0", 0.1)
    assert {trial.state for trial in found} <= {RIGHT, ABSENT}, found
    (timed,) = (trial for trial in found if trial.strategy == "")
    assert timed.state == RIGHT
    assert timed.us
    assert timed.torch_us
