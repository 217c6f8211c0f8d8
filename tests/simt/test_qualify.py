"""A qualification with the executor as the device: kernels that are right, and planted faults."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest

from rnnfast import _ext
from rnnfast.backends.qualified import ABSENT, RIGHT, Qualification, Trial
from rnnfast.qualify import Case, Way, qualify, ways

from .build import library

ROOT = Path(__file__).resolve().parents[2]
CHILD = (sys.executable, "-m", "tests.simt.qualify_child")
CASES = [
    Case("lstm", "bfloat16", True, 3, 2, 48),
    Case("lstm", "bfloat16", True, 3, 9, 72),
    Case("gru", "tf32", False, 2, 2, 48),
]
GRID = Way("simt", "RNNFAST_PLAN", "grid")


@pytest.fixture(autouse=True, scope="module")
def _built() -> None:
    if _ext.why_no_cpu() is not None:
        pytest.skip(f"the plan is part of the extension: {_ext.why_no_cpu()}")
    library()


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def tried(way: Way, limit: float = 300) -> list[Trial]:
    return qualify([way], CASES, "cpu", 0.01, limit=limit, child=CHILD)


def test_the_kernels_are_right() -> None:
    told: list[Trial] = []
    found = qualify(ways("simt", like="cuda"), CASES, "cpu", 0.01, told.append, 300, CHILD)
    assert told == found
    assert {trial.state for trial in found} <= {RIGHT, ABSENT}
    planned = [trial for trial in found if trial.strategy == ""]
    assert [trial.state for trial in planned] == [RIGHT] * len(CASES)
    assert all(trial.us and trial.torch_us for trial in planned)
    assert not any(trial.us for trial in found if trial.strategy)
    right = {trial.strategy for trial in found if trial.state == RIGHT}
    assert right == {"stepwise", "resident", "cluster", "grid", ""}
    known = Qualification(found)
    assert known.standing("simt", "lstm", "bfloat16", True).passed
    assert not known.standing("simt", "lstm", "float32", True).passed
    assert known.faults == {}


@pytest.mark.parametrize(
    ("plant", "state"),
    [
        ("wrong", "y is off by"),
        ("wrong lengths", "reversed, with lengths and resets: y is off by"),
        ("crash", "its process ended with status 3"),
        ("raise", "RuntimeError: CUDA error: an illegal memory access"),
    ],
)
def test_a_fault_costs_its_case_only(
    plant: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANT", plant)
    monkeypatch.setenv("PLANT_AT", "72")
    first, second, third = tried(GRID)
    assert first.state == RIGHT
    assert second.state.startswith(state)
    assert third.state == RIGHT
    known = Qualification([first, second, third])
    assert not known.standing("simt", "lstm", "bfloat16", True).passed
    assert known.faults["simt", "lstm", "bfloat16"] == second


def test_a_kernel_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANT", "hang")
    monkeypatch.setenv("PLANT_AT", "72")
    mark = f"of-{uuid.uuid4()}"
    monkeypatch.setenv("MARK", mark)  # by which its processes are known
    first, second, third = tried(GRID, limit=30)
    assert (first.state, third.state) == (RIGHT, RIGHT)
    assert second.state == "no end within 30 s"
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if mark in text_of(path)]


def text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # another user's, or it has ended
        return ""
