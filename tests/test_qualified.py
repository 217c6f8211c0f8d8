"""What was found on a GPU: kept, read, and heeded by ``auto``, ``explain`` and ``doctor``."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnfast
from rnnfast import store, tune_cli
from rnnfast.backends import preference, qualified, registry
from rnnfast.backends.qualified import ABSENT, RIGHT, Qualification, Trial
from rnnfast.explain import described
from rnnfast.problem import Options, Problem
from rnnfast.qualify import Case, Way, qualify, spread
from rnnfast.qualify.run import MOST_LOST
from rnnfast.selection import choose
from rnnfast.tune_cli import main

explaining = importlib.import_module("rnnfast.explain")  # whose function hides it
qualify_run = importlib.import_module("rnnfast.qualify.run")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNFAST_CACHE", str(tmp_path))
    monkeypatch.delenv("RNNFAST_TUNE", raising=False)
    return tmp_path


def problem(**changes: Any) -> Problem:
    sizes = (40, 8, 128, 128, 128)
    options = Options(training=True)
    asked = Problem("lstm", "dense", "cuda", torch.bfloat16, *sizes, True, False, False, options)
    return asked._replace(**changes)


def trial(backend: str = "cuda", state: str = RIGHT, ratio: float = 0.0, **changes: Any) -> Trial:
    made = Trial(backend, "", "lstm", "bfloat16", True, 40, 8, 128, state)
    if ratio:
        made = made._replace(us=100.0, torch_us=100.0 * ratio)
    return made._replace(**changes)


def names(*trials: Trial, **changes: Any) -> tuple[str, ...]:
    qualified.remember(0, trials)
    return preference.order(problem(**changes)).names


def test_without_a_qualification_torch_comes_first_and_it_is_said() -> None:
    for changes in ({}, {"has_lengths": True}, {"tracing": True}):
        told = preference.order(problem(**changes))
        assert told.names[0] == "torch"
        assert told.reason == "not qualified on this device: python -m rnnfast tune"


def test_explain_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rnnfast.LSTM(4, 128, dtype=torch.bfloat16)

    def told() -> str:
        asked = problem()
        monkeypatch.setattr(explaining, "problems_of", lambda *_: [asked])
        return str(explaining.explain(layer, torch.zeros(1, 1, 4, dtype=torch.bfloat16)))

    assert "in this order: not qualified on this device: python -m rnnfast tune" in told()
    qualified.remember(0, [trial(state="no end within 60 s", strategy="grid"), trial("triton")])
    assert "cuda failed when qualified (cuda grid: lstm bfloat16 training T=40" in told()


def test_who_passed_and_won_comes_first() -> None:
    assert names(trial(ratio=1.5))[:2] == ("cuda", "torch")
    assert names(trial(ratio=1.2), trial("triton", ratio=1.5))[:3] == ("triton", "cuda", "torch")
    assert names(trial(ratio=1.01), trial("triton", ratio=0.5))[0] == "torch"
    told = preference.order(problem())
    assert "torch's time is expected to be 1.01 of cuda's" in told.reason


def test_between_sizes_the_ratio_is_between() -> None:
    slow, fast = trial(ratio=0.5, H=64), trial(ratio=4.0, H=1024)
    assert names(slow, fast)[0] == "torch"
    assert names(slow, fast, H=512)[0] == "cuda"


@pytest.mark.parametrize("state", ["no end within 60 s", "y is off by 1, 0.01 is allowed"])
def test_one_wrong_strategy_puts_a_backend_last(state: str) -> None:
    wrong = trial(state=state, strategy="grid", H=512)
    assert names(trial(ratio=3.0), wrong) == ("torch", "cpu", "triton", "reference", "cuda")
    reason = preference.order(problem()).reason
    line = f"cuda grid: lstm bfloat16 training T=40 B=8 H=512: {state}"
    assert f"cuda failed when qualified ({line})" in reason
    assert "triton was not tried" in reason
    absent = trial(state=ABSENT, strategy="cluster")
    assert names(trial(ratio=3.0), absent)[0] == "cuda"


def test_where_torch_serves_badly_or_not_passing_is_enough() -> None:
    assert names(trial(ratio=0.5), has_lengths=True)[0] == "cuda"
    assert names(trial(ratio=0.5), has_resets=True)[0] == "cuda"
    assert names(trial(ratio=0.5))[0] == "torch"
    assert names(trial(state="wrong"), has_resets=True)[-1] == "cuda"


def test_what_was_not_tried_stands_where_it_stood() -> None:
    plain = ("torch", "cpu", "cuda", "triton", "reference")
    assert names(trial(ratio=3.0), cell="gru") == plain
    assert names(trial(ratio=3.0), dtype=torch.float64, has_resets=True) == plain


def test_for_a_tracer_it_has_to_win_at_every_size() -> None:
    """Its sizes may be symbols. It looks at no file, and finds a constant."""

    def first(x: torch.Tensor) -> torch.Tensor:
        asked = problem(T=x.shape[0], tracing=True)
        return x + ("torch", "cuda").index(preference.order(asked).names[0])

    def compiled() -> float:
        traced = torch.compile(first, backend="eager", fullgraph=True, dynamic=True)
        return float(traced(torch.zeros(7)).max())

    assert compiled() == 0
    fast = trial(ratio=9.0)
    assert names(fast, tracing=True)[0] == "cuda"
    torch.compiler.reset()
    assert compiled() == 1
    assert names(fast, trial(ratio=1.0, H=512), tracing=True)[0] == "torch"
    torch.compiler.reset()
    assert compiled() == 0


def test_tf32_is_a_way_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision, way in (("ieee", "float32"), ("tf32", "tf32")):
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
        assert qualified.math_of(torch.float32) == way
        assert qualified.math_of(torch.float64) == "float64"
        assert names(trial(ratio=2.0, math=way), dtype=torch.float32)[0] == "cuda"
        assert names(trial(ratio=2.0, math="float16"), dtype=torch.float32)[0] == "torch"


def test_a_choice_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = described(rnnfast.LSTM(128, 128), torch.zeros(40, 8, 128), None, None, False)[0]
    for name in ("cuda", "triton"):
        monkeypatch.setattr(registry.BACKENDS[name], "unusable", lambda: None)

    def chosen(**changes: Any) -> str:
        return choose(stack, problem(**changes))[0].backend.name

    assert chosen() == "torch"
    qualified.remember(0, [trial(ratio=2.0)])
    assert chosen() == "cuda"
    qualified.forget(0)
    assert chosen() == "torch"
    qualified.remember(0, [trial(ratio=2.0, math="tf32")])
    for precision, backend in (("ieee", "torch"), ("tf32", "cuda"), ("ieee", "torch")):
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
        assert chosen(dtype=torch.float32) == backend


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trials": 3}', '{"trials": [[1], ["cuda"]]}'])
def test_a_file_that_is_none_counts_as_nothing(text: str, cache: Path) -> None:
    path = qualified.file_of(0)
    path.write_text(text)
    qualified._read.cache_clear()
    assert qualified.of(0) is None


def test_it_is_kept_whole_and_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [trial(ratio=2.0), trial(state="no end within 60 s")]
    path = qualified.remember(0, trials)
    assert qualified.of(0).trials == trials
    kept = store.read(path)
    assert kept["device"] == qualified.device_of(0)
    assert {"driver", "torch", "cudnn", "triton", "rnnfast"} <= kept.keys()
    monkeypatch.setenv("RNNFAST_TUNE", "0")
    assert qualified.of(0) is None
    assert preference.order(problem()).reason.startswith("RNNFAST_TUNE=0: ")


def test_a_table_that_ships_holds_for_its_kind_of_device(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = qualified.remember(0, [trial(ratio=2.0)])
    shipped = cache / "shipped"
    shipped.mkdir()
    kept.rename(shipped / "gpu-ours.json")
    monkeypatch.setattr(qualified, "TABLES", shipped)
    qualified.forget(0)
    qualified.shipped.cache_clear()
    try:
        assert preference.order(problem()).names[0] == "cuda"
        assert qualified.summary(0) == "qualified by us on none: 1 of 1 trials right"
        assert qualified.shipped("another") is None
        assert names(trial(ratio=0.5))[0] == "torch"  # its own comes before
    finally:
        qualified.shipped.cache_clear()


@pytest.mark.parametrize("version", ["580.65.06", "12.8"])
def test_the_driver_is_part_of_it(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: line)
    assert qualified._driver() == version


def test_doctor_says_what_was_found() -> None:
    assert qualified.summary(0) == "not qualified on this device: python -m rnnfast tune"
    wrong = trial(state="no end within 60 s", strategy="grid")
    qualified.remember(0, [trial(), trial(state=ABSENT), wrong])
    assert qualified.summary(0) == (
        "qualified on this kind of device: 1 of 2 trials right; first that was not: "
        "cuda grid: lstm bfloat16 training T=40 B=8 H=128: no end within 60 s"
    )


def test_the_command_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device here")
    assert main(["--device", "cuda"]) == 1
    assert "there is nothing to qualify: cuda: " in capsys.readouterr().err
    for bad in (["--device", "mps"], ["--device", "cuda:3"], ["--device", "cuda", "--threads=1"]):
        with pytest.raises(SystemExit):
            main(bad)
    assert main(["--device", "cuda", "--show"]) == 0
    assert "not qualified on this device: python" in capsys.readouterr().out
    qualified.remember(0, [trial(ratio=2.0)])
    assert main(["--device", "cuda", "--show"]) == 0
    assert "right, 100.0 us, torch 200.0 us" in capsys.readouterr().out
    assert main(["--device", "cuda", "--forget"]) == 0
    assert qualified.of(0) is None


def test_the_command_where_there_is_a_gpu(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry.BACKENDS["cuda"], "unusable", lambda: None)
    monkeypatch.setattr(registry.BACKENDS["triton"], "unusable", lambda: "none")
    asked: list[Any] = []

    def qualify(ways: Any, cases: Any, device: str, seconds: float, report: Any) -> list[Trial]:
        asked.append(({way.strategy for way in ways}, len(cases), device))
        report(trial(ratio=2.0))
        return [trial(ratio=2.0), trial(state="wrong", strategy="grid")]

    monkeypatch.setattr(tune_cli, "qualify", qualify)
    assert main(["--device", "cuda", "--quick"]) == 1  # one is not right
    strategies, count, device = asked[0]
    assert strategies == {"stepwise", "resident", "cluster", "grid", ""}
    assert (count, device) == (len(rnnfast.CELLS) * 4 * 2 * len(spread.QUICK), "cuda:0")
    out = capsys.readouterr().out
    assert f"1/{5 * count} cuda as planned: lstm bfloat16 training T=40 B=8 H=128: right" in out
    assert qualified.of(0).trials[1].state == "wrong"
    monkeypatch.setenv("RNNFAST_CACHE", str(cache / "file"))
    (cache / "file").write_text("")
    assert main(["--device", "cuda", "--quick"]) == 1
    assert "can't be written" in capsys.readouterr().err
    assert len(asked) == 1  # nothing was tried for nothing


# --- processes that are lost ----------------------------------------------------------------------

WAY = Way("cuda", "RNNFAST_PLAN", "grid")
DIES = (sys.executable, "-c", "raise SystemExit(7)")
# right for all but the LSTM's first: begins, and ends there
LOSES = """
import json, sys
for n, case in enumerate(json.load(sys.stdin)[3]):
    print(json.dumps({"begins": n}), flush=True)
    if case[0] == "lstm":
        raise SystemExit(3)
    print(json.dumps({"ends": n, "state": "right"}), flush=True)
"""


def test_a_process_that_does_not_start() -> None:
    cases = [Case(f"cell {n}", "bfloat16", True, 1, 1, 1) for n in range(MOST_LOST + 2)]
    found = qualify([WAY], cases, "cuda:0", 0.01, child=DIES)
    states = [trial.state for trial in found]
    assert states[:MOST_LOST] == ["its process ended with status 7"] * MOST_LOST
    assert states[MOST_LOST:] == [f"left out: {MOST_LOST} processes were lost before"] * 2
    known = Qualification(found)
    assert len(known.faults) == len(cases)  # what was left out has not passed


def test_a_lost_process_costs_its_cell_and_math_and_nothing_else() -> None:
    maths = ("bfloat16", "float16")
    cases = [
        Case(c, m, True, 1, 1, H) for c in ("gru", "lstm", "mgu") for m in maths for H in (1, 2)
    ]
    found = qualify([WAY], cases, "cuda:0", 0.01, child=(sys.executable, "-c", LOSES))
    lost = [trial for trial in found if trial.state != RIGHT]
    assert [(t.cell, t.math, t.H) for t in lost] == [("lstm", m, 1) for m in maths]
    assert {t.state for t in lost} == {"its process ended with status 3"}
    assert len([t for t in found if t.state == RIGHT]) == 8


def test_the_process_of_its_own() -> None:
    if (missing := registry.BACKENDS["cpu"].unusable()) is not None:
        pytest.skip(missing)
    way = Way("cpu", "NOTHING_READS_IT", "")
    cases = [Case("lstm", "float32", True, 5, 3, 8), Case("mgu", "bfloat16", False, 5, 3, 8)]
    timed, untimed = qualify([way], cases, "cpu", 0.01)
    assert (timed.state, untimed.state) == (RIGHT, RIGHT)
    assert timed.us
    assert timed.torch_us
    assert untimed.us is None  # torch has no such kernel


def test_one_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qualify_run, "START", 0.5)
    case = Case("lstm", "bfloat16", True, 1, 1, 1)
    (lost,) = qualify([WAY], [case], "cuda:0", 0.01, child=("sleep", "100"))
    assert lost.state == "no start within 0.5 s"
