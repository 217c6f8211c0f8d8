"""benchmarks.transforms: the gate, what it writes, and that the page shows what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, records, transforms
from benchmarks import table as results
from benchmarks.transform_peers import as_tensors
from benchmarks.transforms import AGAINST, NAMES, OURS_NAME, Peer


class Fake:
    """A peer of whom each call takes ``seconds`` and returns ``value``."""

    def __init__(self, name: str, seconds: float, value: float | None = 1.0) -> None:
        self.name, self.seconds, self.value = name, seconds, value

    def ask(self, name: str, what: str) -> Any:
        if self.value is None and name in AGAINST:
            return None
        if what.startswith("="):
            torch.save({"0": torch.full((2,), self.value or 1.0)}, what[1:])
            return True
        return [self.seconds * (2 if name in AGAINST else 1)] * int(what)


def test_what_is_measured_is_written_and_shown(tmp_path: Path) -> None:
    peers: list[Any] = [
        Fake(OURS_NAME, 0.001),
        Fake("slow", 0.1),
        Fake("wrong", 0.001, 2.0),
        Fake("half", 0.002, None),
    ]
    rows = transforms.measure("lstm", peers, 3, lambda _: None)
    path = tmp_path / "transforms.csv"
    records.write(path, rows, records.facts("cpu", 1))
    assert results.read_csv(path, transforms.Row) == rows
    assert path.with_suffix(".json").exists()
    by_key = {(row.transform, row.peer): row for row in rows}
    assert by_key["vmap", OURS_NAME].of_against == 2
    assert by_key["vmap", "slow"].of_ours == 100
    assert by_key["vmap", "slow"].rounds == 3
    assert {row.note for row in rows if row.peer == "wrong"} == {"differs"}
    assert by_key["vmap", "half"].note == "can't"
    assert by_key["forward", "half"].of_ours == 2
    head, _, *lines = transforms.table(rows)
    assert head == "| cell | transform | rnnfast | is | slow | wrong | half |"
    assert len(lines) == len(NAMES)
    assert lines[2] == "| lstm | vmap | 2.00 ms | 2.0 x forward | 100.00 | differs | can't |"


def test_a_peer_is_a_process_of_its_own(tmp_path: Path) -> None:
    peer = Peer(OURS_NAME, "gru", 1, sys.executable, machine.ROOT)
    try:
        seconds = peer.ask("forward", "2")
        assert len(seconds) == 2
        assert min(seconds) > 0
        assert peer.ask("forward", f"={tmp_path / 'y'}") is True
    finally:
        peer.close()
    (y,) = torch.load(tmp_path / "y", weights_only=True).values()
    assert y.shape == (50, 32, 64)


def test_results_are_compared_by_name() -> None:
    assert as_tensors(torch.ones(1), ["a"]).keys() == {"a"}
    assert as_tensors((torch.ones(1), None, torch.ones(1)), ["a", "b", "c"]).keys() == {"a", "c"}
