"""Fixtures for every test: one thread, a fixed seed, and NaN in all memory that is not written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

pytest_plugins = ["tests.tiers"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _not_tuned() -> Iterator[None]:
    """What the user's machine was tuned to has no say in the tests, nor in their processes."""
    before = os.environ.get("RNNFAST_TUNE")
    os.environ["RNNFAST_TUNE"] = "0"
    yield
    if before is None:
        del os.environ["RNNFAST_TUNE"]
    else:
        os.environ["RNNFAST_TUNE"] = before


@pytest.fixture
def poisoned() -> Iterator[None]:
    """torch.empty and its like give NaN (the largest integer): an unwritten element shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
