"""Stages, their shares of the time, and that each costs only itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_check import stages
from benchmarks.gpu_check.children import Command, Finished
from benchmarks.gpu_check.stages import (
    CUT,
    FAILED,
    MISSING,
    OK,
    Context,
    Deadline,
    Outcome,
    Result,
    Stage,
    Stopped,
)

CONTEXT = Context(Path("unused"), dry_run=True, prebuilt=False)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def stage(self, name: str, share: float, takes: float, state: str = OK) -> Stage:
        def run(_: Context, allowed: float) -> Outcome:
            self.now += takes
            return Outcome(state, f"{name} may take {allowed:g}")

        return Stage(name, share, run)


def run(clock: Clock, made: list[Stage], budget: float) -> list[Result]:
    return stages.run_stages(made, CONTEXT, Deadline(budget, clock), lambda _: None)


def test_a_stage_gets_its_share_of_what_is_left() -> None:
    clock = Clock()
    made = [clock.stage("a", 10, 30), clock.stage("b", 30, 10), clock.stage("c", 60, 5)]
    results = run(clock, made, 100)
    # 10 of 100; then 30 of the 90 parts of 70 s; then all of the rest
    assert [round(r.allowed, 3) for r in results] == [10, 23.333, 60]
    assert [r.seconds for r in results] == [30, 10, 5]


def test_what_a_dry_run_compiles_is_none_of_a_stages_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, compiled = Clock(), list[tuple[str, float]]()

    def compiles(command: Command, seconds: float) -> Finished:
        clock.now += 40
        compiled.append((command.words[-1], seconds))
        return Finished(3 if "wrong" in command.words else 0, "$ it\nno such file")

    monkeypatch.setattr(stages, "run_command", compiles)
    made = [
        replace(clock.stage("a", 1, 10), compiles=("here",)),
        replace(clock.stage("b", 1, 10), compiles=("there", "wrong")),
        clock.stage("c", 1, 10),
    ]
    context = Context(tmp_path, dry_run=True, prebuilt=False)
    results = stages.run_stages(made, context, Deadline(160, clock), lambda _: None)
    assert compiled == [("here", 160), ("wrong", 110)]
    assert [r.allowed for r in results] == [40, 35, 70]
    assert [r.seconds for r in results] == [50, 40, 10]
    assert [r.outcome.state for r in results] == [OK, FAILED, OK]
    assert results[1].outcome.line == "not compiled: no such file"
    context = replace(context, dry_run=False)
    results = stages.run_stages(made, context, Deadline(160, clock), lambda _: None)
    assert [r.outcome.state for r in results] == [OK, OK, OK]
    assert len(compiled) == 2


def test_a_stage_without_time_is_not_run_and_says_so() -> None:
    clock = Clock()
    results = run(clock, [clock.stage("a", 1, 99.5), clock.stage("b", 1, 1)], 100)
    assert results[1].outcome == Outcome(MISSING, "no time was left for it")
    assert clock.now == 199.5


def test_a_failed_stage_does_not_stop_the_next() -> None:
    def broken(_: Context, __: float) -> Outcome:
        raise ValueError("no such thing")

    clock = Clock()
    results = run(clock, [Stage("a", 1, broken), clock.stage("b", 1, 1)], 10)
    assert [r.outcome.state for r in results] == [FAILED, OK]
    assert results[0].outcome.line.startswith("ValueError at test_stages.py:")
    assert stages.exit_status(results) == 1


def test_results_are_handed_over_after_each_stage() -> None:
    clock, seen = Clock(), []
    made = [clock.stage(name, 1, 1) for name in "abc"]
    deadline = Deadline(9, clock)
    stages.run_stages(made, CONTEXT, deadline, lambda r: seen.append([x.name for x in r]))
    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize(
    ("states", "status"),
    [([OK, OK], 0), ([OK, CUT, MISSING], 0), ([OK, FAILED], 1), ([MISSING, CUT], 1), ([], 1)],
)
def test_the_exit_status_says_whether_a_stage_failed(states: list[str], status: int) -> None:
    results = [Result("x", Outcome(state, ""), 1, 1) for state in states]
    assert stages.exit_status(results) == status


def test_what_can_t_be_written_down_does_not_stop_the_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def after(_: list[Result]) -> None:
        raise OSError("no space left on device")

    clock = Clock()
    made = [clock.stage(name, 1, 1) for name in "ab"]
    results = stages.run_stages(made, CONTEXT, Deadline(9, clock), after)
    assert [r.outcome.state for r in results] == [OK, OK]
    assert "no space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("while_writing", [False, True])
def test_a_signal_ends_the_stage_and_begins_no_other(while_writing: bool) -> None:
    clock, seen = Clock(), []

    def stopped(_: Context, __: float) -> Outcome:
        if not while_writing:
            raise Stopped("SIGTERM")
        return Outcome(OK, "done")

    def after(results: list[Result]) -> None:
        seen.append([r.outcome.state for r in results])
        if while_writing and len(seen) == 1:
            raise Stopped("SIGTERM")

    made = [Stage("a", 1, stopped), clock.stage("b", 1, 1)]
    stages.run_stages(made, CONTEXT, Deadline(9, clock), after)
    assert seen == ([[OK], [OK]] if while_writing else [[CUT]])
