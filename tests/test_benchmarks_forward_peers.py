"""Forward by everybody: who is off is not timed, who ends is not waited for, losses are shown."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="peers are given numbers in numpy's files")

from benchmarks import forward_peers as bench
from benchmarks.cases import Case

SMALL = Case("gru", 3, 2, 4, 5)


def test_a_peer_is_timed_where_it_computes_the_same(tmp_path: Path) -> None:
    with bench.Peer("rnnfast", sys.executable, 1) as ours:
        (row,) = bench.timed(SMALL, [ours], 2, tmp_path)
        assert (row.case, row.peer, row.rounds) == (SMALL.name, "rnnfast", 2)
        assert 0 < row.q1_ms <= row.ms <= row.q3_ms
        told, exact, allowed = bench.lay_down(SMALL, tmp_path)
        assert bench.refusal(ours, told, exact, allowed) is None
        said = bench.refusal(ours, told, exact + 1e-3, allowed)
    assert said is not None
    assert said.startswith("off by 1.0e-03")


def test_a_peer_that_is_not_there_says_so(tmp_path: Path) -> None:
    told = bench.lay_down(SMALL, tmp_path)[0]
    with bench.Peer("JAX", sys.executable, 1) as peer:
        said = peer.ask({**told, "output": str(tmp_path / "y.npy"), "kind": "no such kind"})
        assert said is not None
        peer._process.kill()
        peer._process.wait()
        assert peer.ask(1) == "its process ended"


def test_the_first_of_each_case_is_shown_and_who_was_left_out() -> None:
    nan = math.nan
    rows = [
        bench.Forward("a", "rnnfast", 2.0, 1.9, 2.1, 5),
        bench.Forward("a", "torch.nn", 1.5, 1.4, 1.6, 5),
        bench.Forward("a", "JAX", nan, nan, nan, 0, "not installed"),
        bench.Forward("b", "rnnfast", 1.0, 0.9, 1.1, 5),
    ]
    assert bench.table(rows)[2:] == ["| a | 2 | **1.5** | – |", "| b | **1** | – | – |"]
    assert json.dumps(bench.table(rows)[0]).count("|") == 5
