"""The whole command with stages in which something is planted: a hang, a crash, a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.gpu_check import command, rates, results
from benchmarks.gpu_check.children import run_all

from ..build.support import ROOT
from .planted import CHILDREN

PATIENCE = 60.0  # seconds until a test gives up waiting for what takes one
BUDGET = 15.0  # of a check; what hangs in it takes half


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """The file with the ids of the processes that wait; whatever is left of them is ended."""
    path = tmp_path / "pids"
    path.touch()
    yield path
    for pid in path.read_text().split():
        if lives(int(pid)):
            os.kill(int(pid), signal.SIGKILL)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start(only: str, budget: float, out: Path, pids: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.gpu_check.planted", "--only", only]
    return subprocess.Popen(
        [*words, "--budget", str(budget), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PLANTED_PIDS": str(pids), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


def packed(out: Path) -> dict[str, str]:
    """The archive's files; it is whole."""
    content = io.BytesIO((out / "results.zip").read_bytes())
    with zipfile.ZipFile(content) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hangs", "CUT OFF | exit status None"),
        ("deaf", "CUT OFF | exit status None"),
        ("crashes", "FAILED | exit status -11"),
        ("exits", "FAILED | exit status 3"),
        ("raises", "FAILED | exit status 1: ValueError: planted"),
        ("sticky", "FAILED | exit status 1: RuntimeError: CUDA error: unspecified launch failure"),
        ("leaves", "ok | exit status 0"),
        ("leaves and hangs", "CUT OFF | exit status None"),
        ("floods", "ok | exit status 0: xxx"),
        ("rates", "FAILED | OSError at planted.py:"),
    ],
)
def test_what_goes_wrong_costs_only_itself(
    name: str, found: str, tmp_path: Path, pids: Path
) -> None:
    out = tmp_path / "out"
    child = start(f"fine,{name},last", BUDGET, out, pids)
    shown, _ = child.communicate(timeout=PATIENCE)
    assert child.returncode == ("FAILED" in found), shown
    page = (out / "summary.md").read_text()
    assert f"| {name} | {found}" in page
    assert "| fine | ok | exit status 0: right |" in page
    assert "| last | ok | exit status 0: right |" in page
    assert shown.rstrip().endswith(f"{page.rstrip()}\n\n{out}")
    assert ("timed out" in page) == (name == "hangs")
    files = packed(out)
    assert files["last.txt"].endswith("right\n")
    if name in CHILDREN:
        assert f"{name}.txt" in files
    assert (out / "rates.json").exists() == (name == "rates")
    waited = [int(pid) for pid in pids.read_text().split()]
    assert len(waited) == {"leaves and hangs": 2, "hangs": 1, "deaf": 1, "leaves": 1}.get(name, 0)
    assert not any(map(lives, waited))
    assert len(list(out.iterdir())) <= 8


def test_a_page_that_can_t_be_made_costs_only_itself(tmp_path: Path, pids: Path) -> None:
    out = tmp_path / "out"
    child = start("fine,no page,last", BUDGET, out, pids)
    shown, _ = child.communicate(timeout=PATIENCE)
    assert "TypeError" in shown
    assert "| fine | ok |" in (out / "summary.md").read_text()  # the one before
    assert packed(out)["last.txt"].endswith("right\n")
    assert "last: ok: exit status 0: right" in (out / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("before", range(4))
def test_a_kill_at_any_stage_leaves_what_was_found_before(
    before: int, number: signal.Signals, tmp_path: Path, pids: Path
) -> None:
    out, fine = tmp_path / "out", ["fine", "crashes", "exits"][:before]
    child = start(",".join([*fine, "hangs", "last"]), 600, out, pids)
    wait_for(lambda: pids.read_text().endswith("\n"))
    child.send_signal(number)
    shown, _ = (
        child.communicate(timeout=PATIENCE) if number == signal.SIGTERM else ("", child.wait())
    )
    rows = [f"| {name} |" for name in fine]
    page = (out / "summary.md").read_text()
    files = packed(out)
    assert all(row in page for row in rows)
    assert all(f"{name}.txt" in files for name in fine)
    assert "| last |" not in page
    if number == signal.SIGTERM:  # it has time for its last words
        assert child.returncode == 1
        assert "| hangs | CUT OFF | stopped: SIGTERM |" in page
        assert page.rstrip() in shown
        assert "hangs.txt" in files
        assert not any(lives(int(pid)) for pid in pids.read_text().split())
    else:
        assert "| hangs |" not in page


def test_what_a_killed_check_has_left_ends_with_the_next(tmp_path: Path, pids: Path) -> None:
    child = start("hangs", 600, tmp_path / "out", pids)
    wait_for(lambda: pids.read_text().endswith("\n"))
    child.kill()
    child.wait()
    left = int(pids.read_text())
    assert lives(left)
    work = rates.FOLDER / f"work-{child.pid}"
    assert work.is_dir()
    start("fine", BUDGET, tmp_path / "out", pids).communicate(timeout=PATIENCE)
    wait_for(lambda: not lives(left))
    assert not work.exists()


def test_half_a_file_of_a_run_that_was_killed_is_cleared_away(tmp_path: Path, pids: Path) -> None:
    (tmp_path / ".summary.md.abc").write_text("half")
    (tmp_path / "build.zip").write_text("of another run")
    child = start("fine", BUDGET, tmp_path, pids)
    child.communicate(timeout=PATIENCE)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.txt", "pids", "results.zip", "summary.md"]


def test_what_an_earlier_check_found_is_kept_until_there_is_more(
    tmp_path: Path, pids: Path
) -> None:
    def run(only: str) -> None:
        start(only, BUDGET, tmp_path, pids).communicate(timeout=PATIENCE)

    run("fine")
    first = (tmp_path / "results.zip").read_bytes()
    page = (tmp_path / "summary.md").read_text()
    for bad in ("exits", "crashes"):  # the second has nothing of the first to set aside
        run(bad)
        assert (tmp_path / "earlier-results.zip").read_bytes() == first
        assert (tmp_path / "earlier-summary.md").read_text() == page
        assert (tmp_path / "earlier-log.txt").is_file()
        assert bad in (tmp_path / "summary.md").read_text()
    run("fine")
    assert sorted(path.name for path in tmp_path.glob("earlier-*")) == []


def test_the_archive_is_never_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "MOST", 4000)
    (tmp_path / "large.txt").write_bytes(os.urandom(9000).hex().encode())
    (tmp_path / "small.json").write_text(json.dumps({"rates": 1}))
    with zipfile.ZipFile(io.BytesIO(results.pack(tmp_path))) as archive:
        assert archive.namelist() == ["small.json"]


def test_the_order_is_that_of_worth() -> None:
    assert [stage.name for stage in command.STAGES] == [
        "smoke", "rates", "speed", "tests", "rest", "memcheck", "layers", "sanitizers", "peers"
    ]  # fmt: skip
    assert command.BUDGET <= 9 * 60


def test_an_unknown_stage_is_refused(tmp_path: Path, pids: Path) -> None:
    child = start("fine,xyz", BUDGET, tmp_path / "out", pids)
    assert "no stage is called xyz" in child.communicate(timeout=PATIENCE)[0]
    assert child.returncode == 2


def test_no_command_is_no_hang() -> None:
    assert run_all([], 1) == []
