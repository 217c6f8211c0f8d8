"""benchmarks/options.py: both sides compute the same, and what is measured is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rnnfast
from benchmarks import blocks, options, records, table


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "RAGGED_T", 32)
    monkeypatch.setattr(options, "CELLS", ("GRU",))


@pytest.mark.parametrize("name", [n for n in options.CASES if "float" not in n])
def test_a_case_is_checked_and_timed(name: str) -> None:
    rows = list(options.compare([name], 0.05))
    assert [row.mode for row in rows] == ["train", "forward"]
    assert all(row.ratio > 0 and row.ratio_low <= row.ratio <= row.ratio_high for row in rows)


def test_resets_by_stretches_have_the_gradients_of_resets() -> None:
    case = options.with_resets(torch.float64)
    reference = nn.LSTM(*case.sizes).double()
    layer = rnnfast.LSTM(*case.sizes).double()
    layer.load_state_dict(reference.state_dict())
    case.torch(reference).sum().backward()
    case.rnnfast(layer).sum().backward()
    for a, b in zip(reference.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_outputs_that_differ_are_an_error() -> None:
    with pytest.raises(AssertionError, match="differ by"):
        options.check(torch.zeros(3), torch.full((3,), 1e-3))


def test_what_is_measured_is_written_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "machine" / "more" / "options.csv"
    options.main(["--seconds", "0.05", "--cases", "resets", "--out", str(path)])
    (record,) = records.records(tmp_path, "options")
    assert [row.cell for row in table.read_csv(path, options.Row)] == ["GRU", "GRU"]
    shown = list(blocks.options_left_out(record))
    assert shown[0] == "| training / forward | GRU |"
    with pytest.raises(SystemExit):
        options.main(["--cases", "no such case"])
