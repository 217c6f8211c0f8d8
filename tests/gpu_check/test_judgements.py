"""What is made of the stages' outputs: states, lines, and the page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.cases import parse
from benchmarks.gpu_check import checks, rates, rows, summary, timing
from benchmarks.gpu_check.children import Finished
from benchmarks.gpu_check.stages import CUT, FAILED, MISSING, OK, Context, Outcome, Result

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
    assert rates._judge(content, 0, "").state == FAILED
    assert "failed: mma_cycles" in rates._judge(content, 1, "").line
    assert rates._judge(content, None, "").state == CUT
    nothing = rates._judge(rates.parse(""), 1, "no driver")
    assert (nothing.state, nothing.line) == (FAILED, "no driver")


def test_rates_are_written_for_the_latency_model(tmp_path: Path) -> None:
    from benchmarks.latency.__main__ import load_rates

    rates.write(rates.parse(RATES) | {"dry_run": False}, tmp_path / "rates.json")
    assert load_rates(tmp_path / "rates.json") == ({"grid_barrier_ns": 900.5}, None)
    assert (tmp_path / "rates.csv").read_text() == (
        "name,value,low,high\ngrid_barrier_ns,900.5,890,1200\n"
    )


# ---- small layers


RIGHT = "$ small\nresident forward lstm bfloat16: ok\n"


@pytest.mark.parametrize(
    ("code", "text", "why"),
    [
        (1, RIGHT + "resident forward gru bfloat16: y: error 1.00e+00 > 2e-02\n", "y: error 1.00"),
        (0, "$ small\nresident forward: a warning\n", "exit status 0"),
        (-11, RIGHT, "exit status -11: resident forward lstm bfloat16: ok"),
        (None, RIGHT, "no end in time, after: resident forward lstm bfloat16: ok"),
        (None, "$ small\n", "no end in time, after: nothing"),
    ],
)
def test_a_small_layer_that_is_wrong_crashes_or_hangs_is_a_failure(
    code: int | None, text: str, why: str
) -> None:
    found = checks.judge_smoke({"grid": Finished(0, RIGHT), "resident": Finished(code, text)})
    assert (found.state, found.line) == (FAILED, "1 of 2 right; wrong: resident")
    assert "- resident: " in found.section
    assert why in found.section


def test_no_clusters_are_no_failure() -> None:
    without = Finished(0, "$ small\nthe device has no clusters\n")
    assert checks.judge_smoke({"cluster": without}).state == OK
    assert checks.judge_tools({"memcheck": without}).state == OK


def test_a_sanitizer_that_finds_something_fails() -> None:
    ran = "resident lstm bfloat16: ok\n"

    def state(code: int | None, text: str) -> str:
        return checks.judge_tools({"a": Finished(0, ran), "b": Finished(code, text)}).state

    assert [state(0, ran), state(0, ""), state(None, ran)] == [OK, FAILED, CUT]
    errors = f"{ran}========= ERROR SUMMARY: 3 errors\n"
    found = checks.judge_tools({"memcheck": Finished(checks.FOUND, errors)})
    assert found.state == FAILED
    assert "- memcheck: ERROR SUMMARY: 3 errors after 1 runs" in found.section
    refused = Finished(1, "========= Error: Device not supported. Please refer to …")
    assert checks.judge_tools({"memcheck": refused}).state == MISSING


def test_the_sanitizer_is_found_beside_the_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/no/such/folder")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(checks, "TOOLKIT", tmp_path)
    assert checks.find_sanitizer() is None
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert checks.find_sanitizer() == os.fspath(program)


# ---- tests

ALONE = """
tests/gpu/test_a.py::test_x[lstm-T1] PASSED [ 10%]
tests/gpu/test_a.py::test_x[gru-T1] {} [ 20%]
tests/gpu/test_a.py::test_y SKIPPED (this device: H does not fit one block) [ 30%]
"""
XDIST = """
[gw0] [ 10%] PASSED tests/gpu/test_a.py::test_x[lstm-T1]
[gw11] [100%] {} tests/gpu/test_a.py::test_x[gru-T1]
[gw1] [  5%] SKIPPED tests/gpu/test_a.py::test_y
"""
CRASHED = "[gw0] node down: Not properly terminated\nworker 'gw0' crashed while running '{}'\n"


@pytest.mark.parametrize("text", [ALONE, XDIST])
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
def test_tests_are_judged_one_by_one(text: str, second: str, code: int | None, state: str) -> None:
    found = checks.judge_tests({"teams": Finished(code, text.format(second))})
    assert found.state == state
    assert "1 passed" in found.line or "2 passed" in found.line
    name = "tests/gpu/test_a.py::test_x[gru-T1]"
    assert (f"- {name}" in found.section) == (second in ("FAILED", "ERROR"))


def test_a_test_that_ends_its_process_has_failed() -> None:
    crashed = CRASHED.format("tests/gpu/test_a.py::test_y")
    found = checks.judge_tests({"teams": Finished(1, XDIST.format("PASSED") + crashed)})
    assert found.state == FAILED
    assert "- tests/gpu/test_a.py::test_y" in found.section


def test_a_last_line_counts_where_no_test_is_named() -> None:
    quiet = Finished(0, "== 12 passed, 3 skipped in 4.20s ==\n")
    assert checks.judge_tests({"all": quiet}) == Outcome(OK, "all: 12 passed, 3 skipped")


def test_every_file_with_tests_for_a_gpu_is_run() -> None:
    assert "tests/clip/test_gpu.py" in checks.other_files()
    assert not any(name.startswith("tests/gpu/") for name in checks.other_files())


def test_no_test_at_all_is_a_failure_and_none_in_a_part_is_not() -> None:
    none = Finished(checks.NOTHING_SELECTED, "== 9 deselected in 1.00s ==\n")
    assert checks.judge_tests({"teams": none}).state == FAILED
    assert checks.judge_tests({"teams": Finished(0, "")}).state == FAILED
    skipped = Finished(None, "[gw0] [ 10%] SKIPPED tests/gpu/test_a.py::test_y\n")
    assert checks.judge_tests({"teams": skipped}).state == FAILED
    some = Finished(0, XDIST.format("PASSED"))
    assert checks.judge_tests({"teams": none, "kernels": some}).state == OK


# ---- times


def row(**values: Any) -> table.Row:
    made = {"case": "lstm-T3-B2-I3-H4", "mode": "train", "candidate": "rnnfast", "backend": "cuda"}
    return table.Row(**{**made, "taken": "cuda", "torch_ms": 2.0, "candidate_ms": 1.0, **values})


def judged(folder: Path, found: list[table.Row], code: int | None, cases: int = 1) -> Outcome:
    group = timing.Group("cuda", "bfloat16", "train", ("lstm-T3-B2-I3-H4",) * cases)
    path = folder / "speed" / group.name / "rnnfast-cuda-train-bfloat16-partial.csv"
    path.unlink(missing_ok=True)
    if found:
        table.write_csv(path, found)
    return timing.judge(folder / "speed", {group: Finished(code, "$ run\nRuntimeError: lost\n")})


def test_speed_fails_where_a_case_does_and_never_for_a_time(tmp_path: Path) -> None:
    slow, wrong = row(ratio=0.1), row(status="failed", reason="dx: error 1 > 0")
    assert judged(tmp_path, [slow], 0).state == OK
    assert judged(tmp_path, [slow, wrong], 1, 2).state == FAILED
    assert judged(tmp_path, [], 0).state == FAILED
    cut = judged(tmp_path, [slow], None, 2)
    assert (cut.state, "cut off after 1 of 2 cases" in cut.section) == (CUT, True)
    crashed = judged(tmp_path, [slow], -11, 2)
    assert (crashed.state, "exit status -11: RuntimeError: lost" in crashed.section) == (
        FAILED,
        True,
    )


def test_a_near_miss_is_shown_with_its_times_and_its_error(tmp_path: Path) -> None:
    near = row(status="near", ratio=2.0, reason="y: error 3e-2 > 2e-2")
    found = judged(tmp_path, [near], 1)
    assert found.state == FAILED
    assert "NEAR MISS of its gate: y: error 3e-2 > 2e-2" in found.section
    assert "| 2.000 | 1.000 | 2.00 |" in found.section


def test_the_same_file_name_of_two_groups_is_no_loss() -> None:
    groups = (*timing.SPEED, *timing.REST)
    assert len({group.name for group in groups}) == len(groups)


def test_every_case_of_the_benchmark_is_one() -> None:
    groups = (*timing.SPEED, *timing.REST, *timing.DRY_SPEED, *timing.DRY_REST)
    names = [name for group in groups for name in group.cases]
    for name in (*names, *timing.LAYERS, *timing.DRY_LAYERS, *timing.PEER_CASES):
        assert parse(name).name == name


def test_rows_of_layers_and_peers(tmp_path: Path) -> None:
    timed = rows.Row("haste", "lstm-T3-B2-I3-H4", "float32", 2.0, 1.0, 2.0)
    failed = rows.Row("haste", "gru-T3-B2-I3-H4", "float32", reason="RuntimeError: no GRU")
    rows.write([timed, failed], tmp_path / "peers.csv")
    found = rows.read(tmp_path / "peers.csv")
    assert found[0] == timed
    assert repr(found[1]) == repr(failed)  # NaN differs from itself
    assert rows.read(tmp_path / "none.csv") == []

    def state(found: list[rows.Row], *codes: int | None) -> str:
        return timing.judge_rows(found, list(codes), "Layers", "rnnfast").state

    assert [state([timed], 0), state([timed], 0, None), state([timed], -9)] == [OK, CUT, FAILED]
    assert state([timed, failed], 1) == FAILED


# ---- the page


def results_of(*outcomes: tuple[str, Outcome]) -> list[Result]:
    return [Result(name, outcome, 12.0, 60.0) for name, outcome in outcomes]


def test_the_page_has_what_there_is(tmp_path: Path) -> None:
    context = Context(tmp_path, dry_run=False, prebuilt=True)
    content = rates.parse(RATES) | {"model": {"grid_barrier_ns": (800, "ns", "")}}
    failed = [f"tests/gpu/test_a.py::test_{n}" for n in range(20)]
    tests = "\n".join(f"[gw0] [ 10%] FAILED {name}" for name in failed)
    page = summary.page(
        context,
        results_of(
            ("rates", rates._judge(content, 1, "")),
            ("tests", checks.judge_tests({"teams": Finished(1, tests)})),
            ("speed", judged(tmp_path, [row(ratio=2.0)], 0)),
        ),
        {},
    )
    assert "| tests | FAILED | teams: 20 failed (exit status 1) | 12 / 60 |" in page
    assert "| grid_barrier_ns (ns) | 900.5 | 890 – 1200 | 800 | assumed |" in page
    assert "cluster_exchange_ns | skipped: the device has no clusters" in page
    assert f"- {failed[9]}" in page
    assert f"- {failed[10]}" not in page
    assert "- and 10 more" in page
    assert "| lstm-T3-B2-I3-H4 | cuda-bfloat16-train | 2.000 | 1.000 | 2.00 |" in page
    assert "333.33 |" in page  # 1 ms over 3 steps
    assert summary.DRY not in page


def test_waits_that_timed_out_are_told_by_name(tmp_path: Path) -> None:
    said = "rnnfast:0: wait_for: block: [0,0,0], thread: [0,0,0] Assertion `rnnfast: the exchange "
    (tmp_path / "smoke-grid-forward.txt").write_text(
        f"{said}of a grid team timed out` failed.\n" * 3
    )
    page = summary.page(Context(tmp_path, dry_run=False, prebuilt=True), [], {})
    assert "- the exchange of a grid team, in smoke-grid-forward.txt (3 times)" in page


def test_a_page_is_short_enough_to_be_read_at_once() -> None:
    text = summary.fit("a line\n" * 10_000)
    assert len(text) < 12_000
    assert text.endswith("the rest is in the archive's files.\n")
    assert summary.fit("a line\n") == "a line\n"


def test_a_dry_run_is_marked(tmp_path: Path) -> None:
    page = summary.page(Context(tmp_path, dry_run=True, prebuilt=False), [], {})
    assert summary.DRY in page
