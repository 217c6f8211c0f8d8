"""benchmarks.distributed: the gate, what it writes, and the arithmetic of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from benchmarks import distributed, scaling, table
from rnnfast.text.model import ModelSpec

from .processes import needs_gloo


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@needs_gloo
def test_no_time_is_reported_of_gradients_that_differ(group_of_one: None) -> None:
    """A single process has half of the rows, and nobody the other half."""
    case = distributed.Case("small", ModelSpec(distributed.VOCABULARY, 8), 4, 5)
    with pytest.raises(AssertionError, match="not close"):
        distributed.measure(case, 2)


@needs_gloo
def test_every_way_is_measured_and_written(tmp_path: Path) -> None:
    path = tmp_path / "distributed.csv"
    distributed.main(["--rounds", "2", "--only", "RNN 256", "--out", str(path)])
    rows = table.read_csv(path, distributed.Row)
    assert [row.way for row in rows] == [way.name for way in distributed.WAYS]
    assert all(row.ms > 0 and row.rounds == 2 for row in rows)
    assert rows[0].ratio == 1
    assert [row.rows for row in rows[-3:]] == [16, 8, 4]
    assert path.with_suffix(".json").exists()
    assert len(scaling.measured(rows)) == 3
    assert len(scaling.reckoned(rows)) == 5


def test_the_arithmetic_of_a_ring() -> None:
    """Each process sends 2 (n - 1) messages of 1/n of the bytes."""
    messages = scaling.MESSAGE_SECONDS * 1e3
    assert scaling.ring_ms(0, 4) == pytest.approx(6 * messages)
    assert scaling.ring_ms(1_250_000, 2) == pytest.approx(1 + 2 * messages)
    assert scaling.ring_ms(1_250_000, 4) == pytest.approx(1.5 + 6 * messages)
