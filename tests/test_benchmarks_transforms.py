"""benchmarks/transforms.py: who computes something else is not timed; the rest is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import table, transforms
from benchmarks.transforms import Call


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("T", 3), ("B", 2), ("I", 4), ("H", 5), ("MEMBERS", 2)):
        monkeypatch.setattr(transforms, name, size)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_is_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "AGAINST", {"vmap": "forward"})
    path = tmp_path / "transforms.csv"
    transforms.main(["--seconds", "0.01", "--threads", "1", "--cells", "gru", "--out", str(path)])
    rows = table.read_csv(path, transforms.Row)
    found = {(row.transform, row.peer): row for row in rows}
    assert {name for name, _ in found} == {"forward", "training step", "vmap"}
    assert found["vmap", "ours"].ratio > 0
    assert found["vmap", "loop"].ratio > 0
    assert all(row.reason or row.ratio > 0 for row in rows)


def test_why_a_peer_is_not_timed() -> None:
    def fails() -> None:
        raise NotImplementedError

    right = torch.randn(3)
    assert transforms.why_not(Call(fails), right, []) == "can't"
    assert transforms.why_not(Call(lambda: right + 0.1), right, []) == "differs"
    assert transforms.why_not(Call(lambda: right), right, []) == ""
