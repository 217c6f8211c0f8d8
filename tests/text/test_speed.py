"""Speeds of runs that took turns, and what is said of the machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rnnfast.text import speed
from rnnfast.text.history import History
from rnnfast.text.speed import Quartiles, Watch


def run(seconds: list[float], name: str = "rnnfast") -> SimpleNamespace:
    history = History(tokens=[100] * len(seconds), seconds=seconds)
    return SimpleNamespace(history=history, implementation=name)


def test_a_busy_minute_does_not_decide_the_ratio() -> None:
    """Twice as fast; for a while everything takes five times as long, half of it in one of them."""
    theirs = [2.0] * 40 + [10.0] * 10
    ours = [1.0] * 40 + [5.0] * 5 + [9.0] * 5
    cells = speed.columns([run(ours)], [run(theirs)])
    assert cells[0] == "100"
    assert cells[2:] == ["2.00", "2.00 – 2.00"]
    assert sum(theirs) / sum(ours) < 1.65  # what a ratio of totals would have been


def test_epochs_without_a_partner_count_for_speed_only() -> None:
    cells = speed.columns([run([1.0, 1.0, 0.5])], [run([2.0])])
    assert cells == ["100", "100 – 150", "2.00", "2.00 – 2.00"]


def test_several_seeds_are_one_sample() -> None:
    ours, theirs = [run([1.0]), run([2.0])], [run([2.0]), run([2.0])]
    assert speed.columns(ours, theirs)[2:] == ["1.50", "1.25 – 1.75"]


def test_quartiles() -> None:
    assert Quartiles.of([3.0]) == Quartiles(3.0, 3.0, 3.0)
    assert Quartiles.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Quartiles(3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("others", "seconds", "words"),
    [
        (None, [1.0] * 8, []),
        (0.05, [1.0] * 8, []),
        (0.4, [1.0] * 8, ["other processes took 40%"]),
        (0.0, [1.0, 2.0] * 4, ["lies between 1.00 and 2.00"]),
        (0.4, [1.0, 2.0] * 4, ["took 40%", "unsteady"]),
    ],
)
def test_what_is_said_of_the_machine(
    others: float | None, seconds: list[float], words: list[str]
) -> None:
    found = speed.notes([run(seconds), run([2.0] * 8, "torch")], others)
    assert len(found) == len(words)
    assert all(word in note for word, note in zip(words, found, strict=True))


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell: no /proc")
def test_another_process_is_seen_and_this_one_is_not_counted() -> None:
    def burn(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    code = "while True: pass"
    watch = Watch()
    burn(0.5)
    alone = watch.others()
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        watch = Watch()
        time.sleep(1)
        beside = watch.others()
        other.kill()
    assert alone is not None
    assert beside is not None
    assert beside > alone / 2  # whatever else runs here
    assert beside > 0.8 / speed._reading().processors  # one processor, for the most part


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert speed._reading(tmp_path / "stat") is None
