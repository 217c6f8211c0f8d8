"""Two devices that stand in for GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnfast.triton import graphs, tune

from ..fake_cuda import Fake


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fake]:
    """The current one is 0. Nothing is known of them: no graphs, no measured plans."""
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.setenv(tune.SWITCH, "0")
    monkeypatch.delenv(graphs.SWITCH, raising=False)
    fake = Fake(("first", 90, 132), ("second", 80, 108))
    fake.install(monkeypatch)
    monkeypatch.setattr(graphs, "GRAPHS", graphs.Graphs())
    with fake.running():
        yield fake
