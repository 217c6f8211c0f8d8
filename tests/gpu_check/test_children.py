"""Commands with limits: what they print, and that nothing of them lives on."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import children
from benchmarks.gpu_check.children import Command, run, run_all

from .test_command import lives, wait_for


def python(code: str, log: Path) -> Command:
    return Command((sys.executable, "-c", code), log)


def test_a_command_that_ends_has_its_output_and_status(tmp_path: Path) -> None:
    done = run(python("print('a'); import sys; sys.exit(3)", tmp_path / "deep" / "log.txt"), 30)
    assert (done.code, done.last_line, done.left) == (3, "a", 0)
    assert done.text.startswith(f"$ {sys.executable} -c ")


@pytest.mark.parametrize("more", ["preexec_fn=os.setpgrp", "env={}", "start_new_session=True"])
def test_nothing_saves_a_process_from_its_end(more: str, tmp_path: Path) -> None:
    """ninja gives each compiler a group of its own."""
    code = (
        "import os, subprocess, time\n"
        f"p = subprocess.Popen(['/bin/sleep', '600'], {more})\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)"
    )
    done = run(python(code, tmp_path / "log.txt"), 6)
    assert done.code is None
    assert not lives(int(done.last_line))


def test_several_run_at_once_and_one_that_hangs_leaves_the_others_their_time(
    tmp_path: Path,
) -> None:
    codes = ["import time; time.sleep(600)", "print(1)", "print(2)", "print(3)"]
    commands = [python(code, tmp_path / f"{n}.txt") for n, code in enumerate(codes)]
    done = run_all(commands, 24, at_once=1)
    assert [one.code for one in done] == [None, 0, 0, 0]
    assert [one.last_line for one in done[1:]] == ["1", "2", "3"]


def test_what_can_t_be_ended_does_not_hold_up_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process is that waits for a driver which does not answer."""
    monkeypatch.setattr(children, "GRACE", 0.2)
    ended: list[int] = []
    monkeypatch.setattr(children.os, "kill", lambda pid, _: ended.append(pid))
    try:
        done = run(python("import time; time.sleep(600)", tmp_path / "log.txt"), 0.5)
        assert (done.code, done.left) == (None, 1)
    finally:
        monkeypatch.undo()
        for pid in set(ended):
            os.kill(pid, 9)
    wait_for(lambda: not lives(ended[0]))


def test_an_exception_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    begin = children._start

    def second_fails(command: Command, until: float) -> children._Child:
        if started:
            raise FileNotFoundError("no such program")
        started.append(begin(command, until))
        return started[0]

    monkeypatch.setattr(children, "_start", second_fails)
    commands = [python("import time; time.sleep(600)", tmp_path / f"{n}.txt") for n in range(2)]
    with pytest.raises(FileNotFoundError):
        run_all(commands, 60, at_once=2)
    assert not lives(started[0].process.pid)


def test_of_a_long_output_the_ends_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "MOST_READ", 20)
    (tmp_path / "log.txt").write_text("begins" + "x" * 10**6 + "ends")
    text = children.read(tmp_path / "log.txt")
    assert text.startswith("begins")
    assert text.endswith("ends")
    assert len(text) < 40
