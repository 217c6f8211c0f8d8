"""benchmarks/seeds.py: what is trained is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import seeds, table
from rnnfast.text import data


def test_what_is_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = data.Text("a text", "it was the best of times it was the worst of times " * 300, "here")
    monkeypatch.setattr(data, "load", lambda file: text)
    path = tmp_path / "training.csv"
    seeds.main(["--epochs", "2", "--seeds", "0", "1", "--threads", "1", "--out", str(path)])
    rows = table.read_csv(path, seeds.Row)
    assert [(row.seed, row.implementation) for row in rows] == [
        (0, "rnnfast"), (0, "torch"), (1, "rnnfast"), (1, "torch"),
    ]  # fmt: skip
    assert all(row.epochs == 2 and row.tokens_per_s > 0 and row.validation != 0 for row in rows)
    assert rows[0].perplexity == pytest.approx(rows[1].perplexity, rel=1e-3)
    assert rows[1].ratio == 1
