"""The backend ``simt`` for the tests of this folder that ask for it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import torch

from rnnfast import _ext

from .backend import Simt, registered


@pytest.fixture(scope="session")
def _first_seed() -> int:
    """RNNFAST_SIMT_SEED, else one that differs from run to run; each test prints its own."""
    return int(os.environ.get("RNNFAST_SIMT_SEED", "") or random.SystemRandom().randrange(2**31))


@pytest.fixture
def simt(_first_seed: int) -> Iterator[Simt]:
    """The backend, registered while the test runs; threads in random order."""
    if _ext.why_no_cpu() is not None:
        pytest.skip(f"the plan is part of the extension: {_ext.why_no_cpu()}")
    with registered() as backend:
        print(f"to repeat: RNNFAST_SIMT_SEED={_first_seed}")
        backend.ops.set_schedule("random", _first_seed)
        backend.ops.clear_log()
        yield backend


@pytest.fixture(autouse=True)
def _no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNFAST_PLAN", raising=False)
    torch.use_deterministic_algorithms(False)
