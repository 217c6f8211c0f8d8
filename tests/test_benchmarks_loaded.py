"""benchmarks/loaded.py: the load is there while a case is timed, and gone afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import loaded, table
from benchmarks.cases import parse


def running(marker: str) -> int:
    """Children with this text in their command line."""
    found = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/cmdline").read_bytes()
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                found += marker.encode() in text and int(parent) == os.getpid()
            except OSError:  # it has ended
                pass
    return found


def test_the_load_is_there_for_the_second_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "BUSY", "import time; time.sleep(600)  # the load of a test")
    seen: list[int] = []

    def timed(case: object, seconds: float) -> loaded.Times:
        seen.append(running("# the load of a test"))
        return loaded.Times(2.0, 1.0)

    monkeypatch.setattr(loaded, "measured", timed)
    found = list(loaded.compare([parse("lstm-T2-B1-I3-H4")], 0.1, 2))
    assert seen == [0, 2]
    assert running("# the load of a test") == 0
    assert found == [loaded.Row("lstm-T2-B1-I3-H4", 2000.0, 1.0, 1000.0, 1.0)]


def test_the_load_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "BUSY", "import time; time.sleep(600)  # another load")
    with pytest.raises(KeyError), loaded.busy(2):
        raise KeyError
    assert running("# another load") == 0


def test_a_case_is_timed() -> None:
    torch.manual_seed(0)
    times = loaded.measured(parse("gru-T2-B1-I3-H4"), 0.05)
    assert min(times) > 0


def test_what_is_measured_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "measured", lambda case, seconds: loaded.Times(2.0, 1.0))
    path = tmp_path / "loaded.csv"
    loaded.main(["--cases", "gru-T2-B1-I3-H4", "--processes", "0", "--out", str(path)])
    assert [row.rnnfast_ms for row in table.read_csv(path, loaded.Row)] == [1000.0]
    assert json.loads(path.with_suffix(".json").read_text())["options"]["processes"] == 0
