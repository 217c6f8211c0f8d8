"""The processes that a check starts, each alone: what goes wrong in one is told by it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnfast
from benchmarks.gpu_check import checks, layers, peers, programs, rates, small, timing
from benchmarks.gpu_check.children import Command, Finished
from benchmarks.gpu_check.command import STAGES
from benchmarks.gpu_check.stages import Context
from rnnfast import _ext
from rnnfast._build import host, nvcc

from ..build.support import ROOT


def python(module: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("dry_run", [False, True])
def test_every_command_of_a_stage_is_understood(
    dry_run: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no device is, the words of most commands are met nowhere else."""

    class Parsed(Exception):
        pass

    commands: list[Command] = []

    def run_all(asked: list[Command], *_: Any, **__: Any) -> list[Finished]:
        commands.extend(asked)
        return [Finished(0, "") for _ in asked]

    for module in (checks, timing):
        monkeypatch.setattr(module, "run", lambda one, _: run_all([one])[0])
    monkeypatch.setattr(checks, "run_all", run_all)
    monkeypatch.setattr(checks, "find_sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setattr(timing, "PEERS", {"here": "json"})
    context = Context(tmp_path, dry_run, prebuilt=True)
    for stage in STAGES:
        if stage.name != "rates":
            stage.run(context, 100)
    parse = argparse.ArgumentParser.parse_args

    def parsed(*given: Any) -> None:
        parse(*given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    met = set()
    for one in commands:
        words = one.words[one.words.index("-m") + 1 :]
        met.add(words[0])
        if words[0] != "pytest":
            with pytest.raises(Parsed):
                importlib.import_module(words[0]).main(list(words[1:]))
    ours = {"benchmarks.run", "benchmarks.gpu_check.layers", "benchmarks.gpu_check.small", "pytest"}
    assert met - {"benchmarks.gpu_check.peers"} == ours
    assert ("benchmarks.gpu_check.peers" in met) != dry_run


# ---- small layers


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("dtype", small.DTYPES)
def test_a_right_layer_is_right_and_a_wrong_one_is_not(
    mode: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small.try_one("gru", dtype, "cpu", "reference", mode) == "ok"

    class Wrong(rnnfast.GRU):
        def forward(self, *given: Any, **more: Any) -> Any:
            y, h = super().forward(*given, **more)
            return y * 1.1, h

    monkeypatch.setattr(rnnfast, "GRU", Wrong)
    assert small.try_one("gru", dtype, "cpu", "reference", mode).startswith("y: error")


def test_a_layer_that_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = small.try_one("lstm", "float32", "cpu", "cuda", "forward")
    assert found.startswith("BackendError: ")


def test_no_small_layer_runs_on_a_device_that_one_has_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setenv("RNNFAST_PLAN", "")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(small, "try_one", lambda *_: "RuntimeError: CUDA error")
    monkeypatch.setattr(small, "runs", lambda *_: [("lstm", "bfloat16"), ("gru", "bfloat16")])
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError, match="unspecified launch failure"):
        small.main(["--strategy", "resident"])
    torch.backends.cudnn.allow_tf32 = before
    assert len(capsys.readouterr().out.splitlines()) == 1


# ---- layers and peers


def test_stacked_layers_are_timed_and_failures_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.cases import parse

    if _ext.load() is None:
        pytest.skip(f"the extension is not loaded here: {_ext.why_missing()}")
    monkeypatch.delenv("RNNFAST_PIPELINE", raising=False)
    case = parse(timing.DRY_LAYERS[0])
    row = layers.time_one(case, 8, "cpu", "cpu", 0.01)
    assert (row.peer, row.reason) == ("4 layers, parts of 8 (not pipelined: -)", "")
    assert row.ratio > 0
    assert "BackendError" in layers.time_one(case, 8, "cpu", "cuda", 0.01).reason
    assert "RNNFAST_PIPELINE" not in os.environ


def test_missing_peers_are_named_and_others_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(case: Any, device: str) -> tuple[Any, list[torch.Tensor]]:
        if case.cell == "gru":
            raise RuntimeError("no GRU")
        x = torch.zeros(3, requires_grad=True)
        return lambda: x.sum().backward(), [x]

    monkeypatch.setattr(timing, "PEERS", {"here": "json", "away": "no_such_module_of_that_name"})
    assert timing.installed() == (["here"], ["away"])
    assert {peer.name for peer in peers.PEERS} == {"FlashRNN", "haste"}
    here = peers.Peer("here", torch.float32, build)
    timed = peers.time_one(here, "lstm-T3-B2-I3-H4", "cpu", 0.01)
    failed = peers.time_one(here, "gru-T3-B2-I3-H4", "cpu", 0.01)
    assert timed.ratio > 0
    assert not timed.reason
    assert failed.reason == "RuntimeError: no GRU"


# ---- rates


@pytest.fixture(scope="module")
def executor() -> Path:
    compiler, why = host.find_compiler()
    if compiler is None:
        pytest.skip(f"needs a compiler: {why}")
    return programs.build_for_executor()


def test_a_barrier_that_is_never_met_ends_its_launch_and_no_other_rate(executor: Path) -> None:
    def told(*words: str) -> dict[str, Any]:
        done = subprocess.run([executor, "--tiny", *words], capture_output=True, text=True)
        return rates.parse(done.stdout) | {"code": done.returncode}

    right, late = told(), told("--absent")
    assert (right["code"], right["failed"]) == (0, {})
    assert late["code"] == 1
    assert late["failed"] == {"grid_barrier_ns": "rnnfast: the barrier of grid_barrier timed out"}
    assert right["rates"].keys() - late["rates"].keys() == {"grid_barrier_ns"}


def test_the_program_compiles_for_a_device(tmp_path: Path) -> None:
    search = nvcc.find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        pytest.skip(f"no nvcc: {search.why_not()}")
    assert programs.build("9.0", tmp_path / "rates").stat().st_size > 0


def test_a_program_of_other_sources_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "PROGRAM", tmp_path / "rates")
    monkeypatch.setattr(rates, "STAMP", tmp_path / "rates.stamp")
    assert not rates.is_built()
    (tmp_path / "rates").write_text("")
    (tmp_path / "rates.stamp").write_text(rates.stamp())
    assert rates.is_built()
    (tmp_path / "rates.stamp").write_text("of other sources")
    assert not rates.is_built()


def test_what_torch_can_t_tell_leaves_the_rates(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    content = {"dry_run": False, "clock_ghz": 1.5, "skipped": {}, "failed": {}}
    rate = {"mma_cycles": {"value": 1.0, "low": 1.0, "high": 1.0}}
    rates.write({**content, "rates": rate}, path)
    done = python("benchmarks.gpu_check.device_rates", str(path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout
    found = rates.json.loads(path.read_text())
    assert found["rates"] == rate
    assert {"device_numbers", "rates"} <= found["failed"].keys()
    assert ("model" in found) == (_ext.load() is not None)


# ---- pytest's guard

TESTS = """
import os, sys, time
import pytest, torch

torch.cuda.is_initialized = lambda: os.environ["PLANTED"] == "lost"

LOST = []  # of this process: the next has a context of its own

def synchronize():
    if LOST:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

torch.cuda.synchronize = synchronize

def test_before(): pass

def test_planted():
    if os.environ["PLANTED"] == "hangs":
        time.sleep(600)
    LOST.append(True)
    assert False, "the first to see it"

@pytest.mark.parametrize("n", range(4))
def test_after(n): assert not LOST
"""


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        ("lost", "test_planted: the device is lost: CUDA error: an illegal memory access"),
        ("hangs", "Timeout (0:00:02"),
    ],
)
def test_a_test_that_hangs_or_loses_the_device_costs_only_itself(
    planted: str, told: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    (tmp_path / "test_x.py").write_text(textwrap.dedent(TESTS))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    words = ["pytest", "-v", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_check.guard"]
    words += ["--test-seconds", "2", "-n", "1", "--maxschedchunk", "4", "test_x.py"]
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PLANTED": planted},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    named = {name.partition("::")[2]: state for name, state in checks.outcomes(done.stdout).items()}
    assert told in done.stdout
    assert named.pop("test_planted") == "FAILED", done.stdout
    assert named == {"test_before": "PASSED"} | {f"test_after[{n}]": "PASSED" for n in range(4)}, (
        done.stdout
    )
