"""Whether the kernels are right: small layers, the tests on the device, compute-sanitizer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from .children import Command, Finished, run, run_all
from .stages import CUT, FAILED, MISSING, OK, Context, Outcome
from .summary import listed

STRATEGIES = ("resident", "cluster:blocks=2", "grid:blocks=3,teams=2", "stepwise")
PASSES = ("forward", "backward")
ROOT = Path(__file__).resolve().parents[2]
SMALL = "benchmarks.gpu_check.small"
NO_CLUSTERS = "the device has no clusters"  # as small says


class Batch(NamedTuple):
    """A run of pytest. share: of the time, relative to the others'."""

    name: str
    share: float
    words: tuple[str, ...]


# The kernels' matrix first, and of it the teams of blocks, which nothing else is like.
BATCHES = (
    Batch("teams", 45, ("-m", "gpu", "tests/gpu", "-k", "teams")),
    Batch("kernels", 35, ("-m", "gpu", "tests/gpu", "-k", "not teams")),
    Batch("others", 20, ("-m", "gpu")),  # of all other files
)
DRY_TEST = (
    "tests/simt/test_matrix_simt.py::test_kernels_agree_with_the_naive_loop"
    "[resident-bfloat16-lstm-T1B1I1H1]"
)
DRY_BATCHES = (Batch("executor", 1, (DRY_TEST,)),)
MOST_PROCESSES = 12
TEST_SECONDS = 60  # a test
NOTHING_SELECTED = 5  # pytest's exit status

FOUND = 86  # the exit status of compute-sanitizer where it found something
REFUSED = "Device not supported"
TOOLKIT = Path("/usr/local/cuda")

_STATES = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
_ALONE = re.compile(rf"^(\S+::.*?) ({_STATES})\b", re.MULTILINE)
_XDIST = re.compile(rf"^\[gw\d+\] \[ *\d+%\] ({_STATES}) (\S+::.*?) *$", re.MULTILINE)
_CRASHED = re.compile(r"^worker 'gw\d+' crashed while running '(.+)'$", re.MULTILINE)
_COUNTS = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed|xpassed)s?\b")


def smoke(context: Context, seconds: float) -> Outcome:
    """Each strategy and pass in a process of its own."""
    pairs = [(strategy, which) for strategy in STRATEGIES for which in PASSES]
    commands = {}
    for strategy, which in pairs[::5] if context.dry_run else pairs:
        words = context.python(SMALL, "--strategy", strategy, "--pass", which)
        words += ("--executor",) if context.dry_run else ()
        log = context.folder / f"smoke-{strategy.partition(':')[0]}-{which}.txt"
        commands[f"{strategy} {which}"] = Command(words, log)
    done = run_all(list(commands.values()), seconds, at_once=max(2, context.cores // 2))
    return judge_smoke(dict(zip(commands, done, strict=True)))


def judge_smoke(found: dict[str, Finished]) -> Outcome:
    """A small layer that does not come to its end may hang: that is a failure, too."""
    wrong = {}
    for name, done in found.items():
        if done.code == 0 and (_small_runs(done.text) or NO_CLUSTERS in done.text):
            continue
        lines = [line for line in done.text.splitlines() if line.startswith(name)]
        bad = [line.removeprefix(name).strip() for line in lines if not line.endswith(": ok")]
        if done.code is None:
            wrong[name] = f"no end in time, after: {done.last_line or 'nothing'}"
        elif done.code == 1 and bad:
            wrong[name] = bad[0]
        else:
            wrong[name] = f"exit status {done.code}: {done.last_line}"
    line = f"{len(found) - len(wrong)} of {len(found)} right"
    if not wrong:
        return Outcome(OK, line)
    rows = [f"{name}: {why}" for name, why in wrong.items()]
    return Outcome(FAILED, f"{line}; wrong: {', '.join(wrong)}", listed("Small layers", rows))


def tests(context: Context, seconds: float) -> Outcome:
    """`pytest -m gpu` in parallel; in a dry run one test of the same kernels on the executor."""
    batches = DRY_BATCHES if context.dry_run else BATCHES
    until = time.monotonic() + seconds
    words = context.python("pytest", "-v", "-p", "no:cacheprovider")
    words += ("-p", "benchmarks.gpu_check.guard", "--test-seconds", str(TEST_SECONDS))
    if importlib.util.find_spec("xdist") is not None:
        processes = 1 if context.dry_run else min(MOST_PROCESSES, context.cores)
        words += ("-n", str(processes), "--maxschedchunk", "4")  # nearly in the order of the list
    done = {}
    for place, batch in enumerate(batches):
        left = until - time.monotonic()
        limit = left * batch.share / sum(later.share for later in batches[place:])
        log = context.folder / f"tests-{batch.name}.txt"
        more = other_files() if batch.name == "others" else []
        done[batch.name] = run(Command((*words, *batch.words, *more), log), max(limit, 1))
    return judge_tests(done)


def other_files() -> list[str]:
    """Those with tests for a GPU outside of tests/gpu: to import all files takes half a minute."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [
        str(path.relative_to(ROOT))
        for path in files
        if ROOT / "tests" / "gpu" not in path.parents and "pytest.mark.gpu" in path.read_text()
    ]


def outcomes(text: str) -> dict[str, str]:
    """The state of each test that pytest has told of, alone or by pytest-xdist."""
    found = dict(_ALONE.findall(text))
    found.update((name, state) for state, name in _XDIST.findall(text))
    found.update((name, "FAILED") for name in _CRASHED.findall(text))
    return found


def counts(last_line: str) -> dict[str, int]:
    """Of tests by state, as pytest's last line has them."""
    return {what: int(number) for number, what in _COUNTS.findall(last_line)}


def judge_tests(done: dict[str, Finished]) -> Outcome:
    """Counted test by test, so that a run that was cut off counts too."""
    failed: list[str] = []
    lines, states, passed = [], [], 0
    for batch, finished in done.items():
        named = outcomes(finished.text)
        wrong = [name for name, state in named.items() if state in ("FAILED", "ERROR")]
        failed += wrong
        found = Counter(state.lower() for state in named.values()) or counts(finished.last_line)
        told = ", ".join(f"{n} {state}" for state, n in found.items()) or "no test ran"
        passed += found.get("passed", 0)
        if wrong or (finished.code not in (0, None, NOTHING_SELECTED)):
            states.append(FAILED)
            told += f" (exit status {finished.code})"
        else:
            states.append(CUT if finished.code is None else OK)
        lines.append(f"{batch}: {told}" + (", cut off" if finished.code is None else ""))
    state = next((s for s in (FAILED, CUT) if s in states), OK)
    if passed == 0:  # all were skipped, or none was there
        state = FAILED
    return Outcome(state, "; ".join(lines), listed("Failed tests", failed) if failed else "")


def memcheck(context: Context, seconds: float) -> Outcome:
    return _sanitize(context, seconds, ("memcheck",))


def sanitizers(context: Context, seconds: float) -> Outcome:
    if context.dry_run:
        return Outcome(MISSING, "nothing to do in a dry run: the executor checks by itself")
    return _sanitize(context, seconds, ("racecheck", "synccheck"))


def _sanitize(context: Context, seconds: float, tools: tuple[str, ...]) -> Outcome:
    """Each tool over each strategy, all at once. In a dry run small layers alone."""
    if context.dry_run:
        words = context.python(SMALL, "--executor", "--strategy", STRATEGIES[0])
        log = context.folder / "sanitizer-executor.txt"
        return judge_tools({"executor": run(Command(words, log), seconds)})
    program = find_sanitizer()
    if program is None:
        return Outcome(MISSING, "no compute-sanitizer (it is part of the CUDA toolkit)")
    commands = {}
    for tool in tools:
        for strategy in STRATEGIES:
            words = (program, "--tool", tool, "--error-exitcode", str(FOUND))
            words += context.python(SMALL, "--strategy", strategy)
            name = f"{tool} {strategy.partition(':')[0]}"
            log = context.folder / f"sanitizer-{name.replace(' ', '-')}.txt"
            commands[name] = Command(words, log)
    done = run_all(list(commands.values()), seconds, at_once=max(2, context.cores // 2))
    return judge_tools(dict(zip(commands, done, strict=True)))


def find_sanitizer() -> str | None:
    places = [os.environ.get("PATH", "")]
    for toolkit in filter(None, (os.environ.get("CUDA_HOME"), str(TOOLKIT))):
        places += [f"{toolkit}/bin", f"{toolkit}/compute-sanitizer"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def judge_tools(found: dict[str, Finished]) -> Outcome:
    lines, states = [], []
    for name, done in found.items():
        runs = _small_runs(done.text)
        if REFUSED in done.text:
            states.append(MISSING)
            lines.append(f"{name}: {REFUSED}")
            continue
        clean = done.code == 0 and (runs or NO_CLUSTERS in done.text)
        states.append(OK if clean else CUT if done.code is None else FAILED)
        what = {OK: "clean", CUT: "cut off"}.get(states[-1], f"exit status {done.code}")
        if done.code == FOUND:
            errors = (x for x in done.text.splitlines() if "ERROR SUMMARY" in x)
            what = next(errors, "errors").strip().lstrip("= ")
        lines.append(f"{name}: {what} after {runs} runs")
    worst = next((s for s in (FAILED, CUT, OK) if s in states), MISSING)
    clean = sum(state == OK for state in states)
    line = f"{clean} of {len(found)} clean"
    return Outcome(worst, line, listed("compute-sanitizer", lines))


def _small_runs(text: str) -> int:
    return sum(line.endswith(": ok") for line in text.splitlines())
