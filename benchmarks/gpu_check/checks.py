"""The tests on the device, and compute-sanitizer over small cases."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

from .stages import CUT, FAILED, MISSING, OK, Context, Outcome, run_command

# Of the project's tests those of the kernels first.
TESTS = ("tests/gpu", "tests/clip", "tests/triton", "tests")
DRY_TESTS = (
    "tests/simt/test_matrix_simt.py::test_kernels_agree_with_the_naive_loop"
    "[resident-bfloat16-lstm-T1B1I1H1]",
)
TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 86  # the exit status of compute-sanitizer where it found something
_OUTCOME = re.compile(r"^(\S+::.*) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)


def tests(context: Context, seconds: float) -> Outcome:
    """`pytest -m gpu`; in a dry run one test of the same kernels on the executor."""
    marks = [*DRY_TESTS] if context.dry_run else ["-m", "gpu", *TESTS]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *marks]
    done = run_command(command, seconds, context.folder / "tests.txt")
    return judge_tests(done.text, done.code)


def judge_tests(text: str, code: int | None) -> Outcome:
    """Counted test by test, so that a run that was cut off counts too."""
    named: dict[str, list[str]] = {}
    for name, state in _OUTCOME.findall(text):
        named.setdefault(state, []).append(name)
    failed = [*named.get("FAILED", []), *named.get("ERROR", [])]
    counts = {state: len(names) for state, names in named.items()}
    line = ", ".join(f"{n} {state.lower()}" for state, n in counts.items()) or "no test ran"
    details: dict[str, Any] = {"counts": counts, "failed": failed}
    if failed:
        return Outcome(FAILED, line, details)
    if code is None:
        return Outcome(CUT, line, details)
    passed = code == 0 and counts.get("PASSED", 0) > 0
    return Outcome(OK if passed else FAILED, f"{line} (exit status {code})", details)


def sanitizers(context: Context, seconds: float) -> Outcome:
    """Each tool for a third of the time. In a dry run the small cases alone: the executor checks
    them itself."""
    small = [sys.executable, "-m", "benchmarks.gpu_check.small"]
    if context.dry_run:
        command = [*small, "--executor"]
        done = run_command(command, seconds, context.folder / "sanitizer-executor.txt")
        return judge_tools({"executor": (done.code, done.text)})
    program = shutil.which("compute-sanitizer")
    if program is None:
        return Outcome(MISSING, "compute-sanitizer is not on PATH (it is part of the CUDA toolkit)")
    found = {}
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", str(FOUND), *small]
        log = context.folder / f"sanitizer-{tool}.txt"
        done = run_command(command, seconds / len(TOOLS), log)
        found[tool] = (done.code, done.text)
    return judge_tools(found)


def judge_tools(found: dict[str, tuple[int | None, str]]) -> Outcome:
    """found: exit status (None: cut off) and output of each tool."""
    lines, states = [], []
    for tool, (code, text) in found.items():
        runs = _small_runs(text)
        states.append(OK if code == 0 and runs else CUT if code is None else FAILED)
        what = {OK: "clean", CUT: "cut off"}.get(states[-1], f"exit status {code}")
        if code == FOUND:
            what = next((x for x in text.splitlines() if "ERROR SUMMARY" in x), "errors").strip()
            what = what.lstrip("= ")
        lines.append(f"{tool}: {what} after {runs} runs")
    worst = next((s for s in (FAILED, CUT) if s in states), OK)
    return Outcome(worst, "; ".join(lines), {"tools": lines})


def _small_runs(text: str) -> int:
    return sum(line.endswith(": ok") for line in text.splitlines())
