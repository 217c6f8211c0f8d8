"""The check as if there were a device: a stage is right where it ended for want of one alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check import as_if, checks, probe
from benchmarks.gpu_check.children import Command, run
from benchmarks.gpu_check.stages import CUT, FAILED, MISSING, OK, Context, Outcome, Stage
from rnnfast import _ext
from rnnfast._build import record

from ..build.support import ROOT

DRIVER = "RuntimeError: Found no NVIDIA driver on your system. Please check that you have one"
PYTEST = "$ /env/bin/python3 -m pytest -v -m gpu\n"
SKIPPED = "tests/gpu/test_a.py::test_b[grid] SKIPPED (torch sees no CUDA device) [ 50%]\n"
REASON = "SKIPPED [2] tests/gpu/test_a.py:3: torch sees no CUDA device\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"$ python3 -m x\nTraceback:\n{DRIVER}\n", None),
        ("$ rates\nrates: no CUDA-capable device is detected\n", None),
        ("$ rates\nrates: CUDA driver version is insufficient for CUDA runtime version\n", None),
        ("$ x\nAssertionError: Torch not compiled with CUDA enabled\n", None),
        ("$ x\nrun: error: --device cuda: torch sees no GPU here\n", None),
        ("$ x\ntune: error: triton: it needs a GPU, and torch sees none\n", None),
        (f"$ x\n{DRIVER}\nImportError: no module\n", "ImportError: no module"),
        ("$ x\ncase: ok\n", "case: ok"),
        ("$ x\n", "it said nothing"),
        (f"{PYTEST}{SKIPPED}{REASON}==== 2 skipped in 1.20s ====\n", None),
        (
            f"{PYTEST}[gw0] [ 50%] SKIPPED tests/gpu/test_a.py::test_b\n{REASON}"
            "== 2 skipped in 2s ==\n",
            None,
        ),
        (
            f"{PYTEST}{SKIPPED}SKIPPED [1] tests/gpu/test_a.py:3: Triton is not installed\n"
            f"{REASON}== 3 skipped in 1s ==\n",
            "SKIPPED [1] tests/gpu/test_a.py:3: Triton is not installed",
        ),
        (
            f"{PYTEST}{SKIPPED}tests/gpu/test_a.py::test_c PASSED [ 99%]\n{REASON}"
            "== 1 passed, 2 skipped in 1s ==\n",
            "== 1 passed, 2 skipped in 1s ==",
        ),
        (
            f"{PYTEST}{REASON}ERROR tests/gpu/test_a.py - ImportError\n"
            "== 2 skipped, 1 error in 1s ==\n",
            "== 2 skipped, 1 error in 1s ==",
        ),
        (f"{PYTEST}{SKIPPED}", "tests/gpu/test_a.py::test_b[grid] SKIPPED"),  # cut off
        (f"{PYTEST}== no tests ran in 0.02s ==\n", "== no tests ran in 0.02s =="),
    ],
)
def test_how_a_process_has_ended(text: str, found: str | None) -> None:
    end = as_if.other_end(text)
    assert end is None if found is None else end is not None and end.startswith(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
@pytest.mark.parametrize("batch", ["kernels", "others"])
def test_the_tests_for_a_gpu_want_nothing_else(
    batch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    if batch == "kernels":  # the matrix has one reason for all, and takes long to collect
        files = sorted(map(str, (ROOT / "tests/gpu").glob("test_*.py")))
        words += [path for path in files if "matrix" not in path]
    else:
        words += checks.other_files()
    done = run(Command(tuple(words), tmp_path / "tests.txt"), 300)
    # Also in a build without CUDA, which is asked for first.
    text = done.text.replace("rnnfast was built without CUDA", "torch sees no CUDA device")
    assert as_if.other_end(text) is None


def stage(code: str, state: str, name: str) -> Stage:
    def one(context: Context, seconds: float) -> Outcome:
        if code:
            run(Command((sys.executable, "-c", code), context.folder / "deep" / "it.txt"), seconds)
        return Outcome(state, "as the stage sees it")

    return Stage(name, 1, one)


@pytest.mark.parametrize(
    ("code", "state", "expected"),
    [
        (f"raise RuntimeError({DRIVER!r})", FAILED, (OK, "1 of 1 ended for want of a device")),
        ("raise KeyError(3)", FAILED, (FAILED, "deep/it: KeyError: 3")),
        ("import os; os.abort()", FAILED, (FAILED, "deep/it: it said nothing")),
        ("import time; time.sleep(60)", CUT, (FAILED, "deep/it: it said nothing")),
        ("print('ok')", OK, (FAILED, "deep/it: ok")),
        ("", FAILED, (FAILED, "it started nothing: as the stage sees it")),
        ("", MISSING, (FAILED, "it started nothing: as the stage sees it")),
    ],
)
def test_a_stage_is_judged_by_its_processes(
    code: str, state: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "earlier.txt").write_text("$ x\nof another stage\n")
    (judged,) = as_if.rehearsed([stage(code, state, "rates")])
    outcome = judged.run(Context(tmp_path, False, False, as_if="9.0"), 2)
    assert outcome.state == expected[0]
    assert outcome.line.endswith(expected[1])


def test_a_stage_may_lack_its_tool(tmp_path: Path) -> None:
    (judged,) = as_if.rehearsed([stage("", MISSING, "memcheck")])
    assert judged.run(Context(tmp_path, False, False), 2).state == MISSING


def test_the_probe_takes_the_device_for_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_ext, "why_missing", lambda: None)
    built = {"archs": ["8.0"], "sources": record.digest(ROOT / "csrc")}
    monkeypatch.setattr(_ext, "build_record", lambda: built)
    path = tmp_path / "probe.json"
    assert probe.main([str(path), "--as-if", "8.6"]) == 0
    found = json.loads(path.read_text())
    assert found["gpu"]["capability"] == "8.6"
    assert (found["foreign"], found["unusable"]) == (None, None)
    assert probe.main([str(path), "--as-if", "9.0"]) == 0
    assert json.loads(path.read_text())["unusable"].startswith("it has kernels for 8.0; the device")
