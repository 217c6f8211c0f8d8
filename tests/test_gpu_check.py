"""`make gpu-check`: its stages, budget and judgements, and the whole of it without a device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine, table
from benchmarks.gpu_check import __main__ as program
from benchmarks.gpu_check import checks, layers, peers, programs, rates, speed, stages, summary
from benchmarks.gpu_check.stages import CUT, FAILED, MISSING, OK, Context, Outcome, Result, Stage
from rnnfast import _ext
from rnnfast._build import host

from .build.support import ROOT
from .simt.build import library

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
    return stages.run_stages(made, CONTEXT, budget, lambda _: None, clock)


# ---- the budget


def test_a_stage_gets_its_share_of_what_is_left() -> None:
    clock = Clock()
    made = [clock.stage("a", 10, 30), clock.stage("b", 30, 10), clock.stage("c", 60, 5)]
    results = run(clock, made, 100)
    # 10 of 100; then 30 of the 90 parts of 70 s; then all of the rest
    assert [round(r.allowed, 3) for r in results] == [10, 23.333, 60]
    assert [r.seconds for r in results] == [30, 10, 5]


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
    assert results[0].outcome.line.startswith("ValueError at test_gpu_check.py:")
    assert stages.exit_status(results) == 1


def test_results_are_handed_over_after_each_stage() -> None:
    clock, seen = Clock(), []
    made = [clock.stage(name, 1, 1) for name in "abc"]
    stages.run_stages(made, CONTEXT, 9, lambda r: seen.append([x.name for x in r]), clock)
    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize(
    ("states", "status"),
    [([OK, OK], 0), ([OK, CUT, MISSING], 0), ([OK, FAILED], 1), ([MISSING, CUT], 1), ([], 1)],
)
def test_the_exit_status_says_whether_a_stage_failed(states: list[str], status: int) -> None:
    results = [Result("x", Outcome(state, ""), 1, 1) for state in states]
    assert stages.exit_status(results) == status


def test_the_stages_come_in_the_order_of_what_they_tell() -> None:
    assert [s.name for s in program.STAGES] == [
        "rates", "tests", "sanitizers", "speed", "layers", "peers"
    ]  # fmt: skip
    assert program.BUDGET <= 9 * 60


def runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_is_ended_with_all_it_started_when_its_time_is_up(tmp_path: Path) -> None:
    script = "import subprocess, sys, time; print('begun', flush=True); " + (
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(p.pid, flush=True); time.sleep(60)"
    )
    done = stages.run_command([sys.executable, "-c", script], 3, tmp_path / "log.txt")
    assert done.code is None
    begun, child = done.text.splitlines()[1:3]
    assert begun == "begun"
    deadline = time.monotonic() + 30  # the kernel ends it when it next would run
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)


def test_a_command_that_ends_has_its_output_and_status(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('a'); import sys; sys.exit(3)"]
    done = stages.run_command(command, 30, tmp_path / "deep" / "log.txt")
    assert (done.code, done.last_line) == (3, "a")


# ---- judgements


RATES = """$ rates
{"device": "X100", "multiprocessors": 132, "nominal_ghz": 1.98}
{"name": "clock_ghz", "value": 1.7, "low": 1.69, "high": 1.71}
{"name": "grid_barrier_ns", "value": 900.5, "low": 890, "high": 1200}
{"name": "cluster_exchange_ns", "skipped": "the device has no clusters"}
{"name": "mma_cycles", "failed": "launch of mma_rate failed"}
{"name": "l2_latency_cy"""


def test_lines_of_rates_are_read_as_far_as_they_go() -> None:
    content = rates.parse(RATES)
    assert content["rates"] == {"grid_barrier_ns": {"value": 900.5, "low": 890, "high": 1200}}
    assert content["skipped"] == {"cluster_exchange_ns": "the device has no clusters"}
    assert content["failed"] == {"mma_cycles": "launch of mma_rate failed"}
    assert (content["clock_ghz"], content["device"]) == (1.7, "X100")


def test_a_rate_that_failed_fails_the_stage() -> None:
    content = rates.parse(RATES)
    assert rates._judge(content, 1, "").state == FAILED
    assert "failed: mma_cycles" in rates._judge(content, 1, "").line
    assert rates._judge(content, None, "").state == CUT
    assert rates._judge(rates.parse(""), 1, "no driver") == Outcome(
        FAILED,
        "no driver",
        rates.parse("") | {"clock_ghz": pytest.approx(float("nan"), nan_ok=True)},
    )


def test_rates_are_written_for_the_latency_model(tmp_path: Path) -> None:
    from benchmarks.latency.__main__ import load_rates

    rates.write(rates.parse(RATES) | {"dry_run": False}, tmp_path / "rates.json")
    assert load_rates(tmp_path / "rates.json") == ({"grid_barrier_ns": 900.5}, None)
    assert (tmp_path / "rates.csv").read_text() == (
        "name,value,low,high\ngrid_barrier_ns,900.5,890,1200\n"
    )


PYTEST = """
tests/gpu/test_a.py::test_x[lstm-T1] PASSED [ 10%]
tests/gpu/test_a.py::test_x[gru-T1] {} [ 20%]
tests/gpu/test_a.py::test_y SKIPPED (this device: H does not fit one block) [ 30%]
"""


@pytest.mark.parametrize(
    ("second", "code", "state"),
    [
        ("PASSED", 0, OK),
        ("FAILED", 1, FAILED),
        ("ERROR", 1, FAILED),
        ("FAILED", None, FAILED),
        ("PASSED", None, CUT),
        ("PASSED", 2, FAILED),
        ("SKIPPED", -11, FAILED),
    ],
)
def test_tests_are_judged_one_by_one(second: str, code: int | None, state: str) -> None:
    found = checks.judge_tests(PYTEST.format(second), code)
    assert found.state == state
    assert "1 passed" in found.line or "2 passed" in found.line
    named = ["tests/gpu/test_a.py::test_x[gru-T1]"] if second in ("FAILED", "ERROR") else []
    assert found.details["failed"] == named


def test_no_test_at_all_is_a_failure() -> None:
    assert checks.judge_tests("no tests ran", 5).state == FAILED
    assert checks.judge_tests("", 0).state == FAILED


def test_a_sanitizer_that_finds_something_fails() -> None:
    ran = "resident lstm bfloat16: ok\n"
    assert checks.judge_tools({"memcheck": (0, ran)}).state == OK
    assert checks.judge_tools({"memcheck": (0, "")}).state == FAILED
    errors = f"{ran}========= ERROR SUMMARY: 3 errors\n"
    found = checks.judge_tools({"memcheck": (0, ran), "racecheck": (checks.FOUND, errors)})
    assert found.state == FAILED
    assert found.line.endswith("racecheck: ERROR SUMMARY: 3 errors after 1 runs")
    assert checks.judge_tools({"memcheck": (0, ran), "racecheck": (None, ran)}).state == CUT


def row(**values: Any) -> table.Row:
    made = {"case": "lstm-T3-B2-I3-H4", "mode": "train", "candidate": "rnnfast", "backend": "cuda"}
    return table.Row(**{**made, "taken": "cuda", "torch_ms": 2.0, "candidate_ms": 1.0, **values})


def test_speed_fails_where_a_case_does_and_never_for_a_time() -> None:
    slow, wrong = row(ratio=0.1), row(status="failed", reason="dx: error 1 > 0")
    assert speed.judge({"a": [slow]}, [0]).state == OK
    assert speed.judge({"a": [slow]}, [0, None]).state == CUT
    assert speed.judge({"a": [slow]}, [0, -11]).state == FAILED
    assert speed.judge({"a": [slow, wrong]}, [1]).state == FAILED
    assert speed.judge({}, [0]).state == FAILED


def test_every_case_of_the_benchmark_is_one() -> None:
    from benchmarks.cases import parse

    for group in (*speed.GROUPS, *speed.DRY_GROUPS):
        assert all(parse(name).name == name for name in group.cases)
    assert [parse(name).name for name in peers.CASES] == list(peers.CASES)


def test_missing_peers_are_named_and_others_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    def build(case: Any, device: str) -> tuple[Any, list[torch.Tensor]]:
        if case.cell == "gru":
            raise RuntimeError("no GRU")
        x = torch.zeros(3, requires_grad=True)
        return lambda: x.sum().backward(), [x]

    here = peers.Peer("here", "json", torch.float32, build)
    away = peers.Peer("away", "no_such_module_of_that_name", torch.float32, build)
    monkeypatch.setattr(peers, "PEERS", (here, away))
    assert peers.installed() == ([here], ["away"])
    timed = peers.time_one(here, "lstm-T3-B2-I3-H4", "cpu", 0.01)
    failed = peers.time_one(here, "gru-T3-B2-I3-H4", "cpu", 0.01)
    assert timed.ratio > 0
    assert not timed.reason
    assert failed.reason == "RuntimeError: no GRU"
    peers.write([timed], tmp_path / "peers.csv")
    assert peers.read(tmp_path / "peers.csv") == [timed]


def test_stacked_layers_are_timed_and_failures_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cases import parse

    monkeypatch.delenv("RNNFAST_PIPELINE", raising=False)
    assert [parse(name).name for name in layers.CASES] == list(layers.CASES)
    case = parse(layers.DRY_CASES[0])
    row = layers.time_one(case, 8, "cpu", "cpu", 0.01)
    assert (row.peer, row.reason) == ("4 layers, parts of 8 (not pipelined: -)", "")
    assert row.ratio > 0
    assert "BackendError" in layers.time_one(case, 8, "cpu", "cuda", 0.01).reason
    assert "RNNFAST_PIPELINE" not in os.environ


# ---- the page


def results_of(*outcomes: tuple[str, Outcome]) -> list[Result]:
    return [Result(name, outcome, 12.0, 60.0) for name, outcome in outcomes]


def test_the_summary_has_what_there_is(tmp_path: Path) -> None:
    context = Context(tmp_path, dry_run=False, prebuilt=True)
    content = rates.parse(RATES)
    failed = [f"tests/gpu/test_a.py::test_{n}" for n in range(20)]
    table.write_csv(tmp_path / "rnnfast-cuda-train-bfloat16-partial.csv", [row(ratio=2.0)])
    page = summary.write(
        context,
        results_of(
            ("rates", rates._judge(content, 1, "")),
            ("tests", Outcome(FAILED, "20 failed", {"failed": failed})),
            ("speed", Outcome(OK, "1 case timed")),
        ),
        machine.facts("cpu"),
    ).read_text()
    assert "| tests | FAILED | 20 failed | 12 / 60 |" in page
    assert "| 900.5 | 890 – 1200 |" in page
    assert "cluster_exchange_ns | skipped: the device has no clusters" in page
    assert f"- {failed[7]}" in page
    assert f"- {failed[8]}" not in page
    assert "- and 12 more" in page
    assert "| lstm-T3-B2-I3-H4 | cuda-train-bfloat16 | 2.000 | 1.000 | 2.00 |" in page
    assert "333.33 |" in page  # 1 ms over 3 steps
    assert summary.DRY not in page


def test_a_dry_run_is_marked_and_never_among_a_device_s_results(tmp_path: Path) -> None:
    context = Context(tmp_path, dry_run=True, prebuilt=False)
    page = summary.write(context, [], machine.facts("cpu")).read_text()
    assert summary.DRY in page
    asked = program._parser().parse_args(["--dry-run"])
    assert "results" not in program._folder(asked).parts


# ---- the whole of it


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert program.main([]) == 1
    assert "this torch sees no GPU (--dry-run needs none)" in capsys.readouterr().err


def test_prebuilt_without_the_program_of_the_rates_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "FOLDER", tmp_path)
    with pytest.raises(programs.BuildError, match="--build-rates"):
        programs.find(prebuilt=True)
    (tmp_path / "rates").write_text("")
    assert programs.find(prebuilt=True) == tmp_path / "rates"


def test_the_dry_run_goes_through_every_stage(tmp_path: Path) -> None:
    compiler, why = host.find_compiler()
    if compiler is None or _ext.load() is None:
        pytest.skip(f"needs a compiler and the extension: {why or _ext.why_missing()}")
    library()  # what the stages compile, outside of their budget
    programs.build_for_executor()
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "summary.md").read_text()
    assert summary.DRY in page
    for stage in ("rates", "tests", "sanitizers", "speed"):
        assert f"| {stage} | ok |" in page, page
    assert "| peers | NOT RUN |" in page
    content = json.loads((tmp_path / "rates.json").read_text())
    assert content["dry_run"] is True
    names = set(content["rates"])
    known = set(_ext.load().cuda_rates("H100"))  # type: ignore[union-attr]
    assert names <= known
    assert known - names == {"gpc_sms", "issue_per_clock", "pointwise_bytes_per_clock"} | {
        "product_efficiency"
    }
    assert list(content["failed"]) == list(content["skipped"]) == []
