"""Two tiers of tests. ``make test`` runs the quick one, which tells a user that it works here;
``make test-all`` runs all.

The quick tier leaves out what checks tools and machine code rather than the layers (LEFT_OUT, with
reasons), and of a test with many cases it takes a sample: so many that each value of each parameter
stands beside each value of each other one at least once, for every backend. The sample depends on
nothing but the cases themselves. A case that is a dataclass counts by its fields.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

FEW = 6  # a test with at most so many cases is run whole
EACH = ("backend",)  # parameters for each value of which the sample is whole

# Patterns of node ids without their parameters, or with them ("[[]"), and why the quick tier does
# without.
LEFT_OUT = {
    "tests/simt/test_mutation.py::*": "plants faults in kernels to test their tests",
    "tests/simt/test_ptx.py::*": "runs what nvcc emits: for who changes the CUDA kernels",
    "tests/simt/test_executor.py::*": "tests the executor of the CUDA kernels with sanitizers",
    "tests/simt/test_sanitized_kernels.py::*": "builds the CUDA kernels with sanitizers",
    "tests/simt/*": "compiles the CUDA kernels for the CPU: minutes",
    "tests/build/test_own_machine_code.py::*": "runs nvcc: for who changes the CUDA kernels",
    "tests/build/test_machine_code.py::*": "reads machine code: for who changes the CUDA kernels",
    "tests/build/test_rebuild.py::*": "builds small projects: for who changes the build",
    "tests/build/test_packaging.py::*": "makes wheels: for who changes the build",
    "tests/build/test_installed.py::*": "installs packages: for who changes the build",
    "tests/build/test_workflows.py::*": "reads the workflows: for who changes them",
    "tests/build/test_project_files.py::*": "reads the project's papers: for who changes them",
    "tests/build/test_ext.py::*": "links and loads broken extensions: for who changes the build",
    "tests/build/test_nvcc.py::*": "runs nvcc: for who changes the build",
    "tests/deploy/test_program.py::*": "compiles a C++ program and a package of AOTInductor",
    "tests/deploy/test_on_gpu.py::*": "compiles devices that stand in for GPUs, and exports",
    "tests/deploy/test_backward.py::*": "exports, and calls in another process: seconds",
    "tests/triton/test_ahead.py::*": "compiles Triton kernels ahead of time",
    "tests/triton/test_interpreted.py::test_the_*": "Triton's interpreter is slow: some ran",
    "tests/triton/test_interpreted.py::test_what_*": "Triton's interpreter is slow: some ran",
    "tests/triton/test_interpreted.py::test_cells_*": "Triton's interpreter is slow: some ran",
    "tests/steps/test_own_cpu.py::test_what_16_bit_*_precision": "compiles each cell once more",
    "tests/steps/test_built_in.py::*": "compiles what the matrix has by hand",
    "tests/test_masks.py::test_a_layer_is_the_papers_loop": "compiles each cell by each mask",
    "tests/triton/test_interpreted.py::test_bad_*": "Triton's interpreter is slow: some ran",
    "tests/clip/test_triton.py::*": "a Triton kernel in the interpreter, which is slow",
    "tests/steps/test_own_cpu.py::test_odd_*": "compiles each cell once more",
    "tests/steps/test_own_cpu.py::test_without_bias": "compiles each cell once more",
    "tests/steps/test_own_cpu.py::test_every_*[[]dtype1]": "compiles each cell once more",
    "tests/contract/*[[]own-rnn*": "compiles each cell once more",
    "tests/contract/*[[]own-RNN*": "compiles each cell once more",
    "tests/test_asked_for.py::*": "compiles each cell once more",
    "tests/test_site.py::test_the_site_is_made": "makes the site, where its tools are",
    "tests/test_notebooks.py::test_a_notebook_*": "trains a model, as a page of the docs does",
    "tests/test_masks.py::test_fullgraph": "compiled, by two compilers",
    "tests/test_family_layers.py::test_compiled_in_one_graph": "compiled, by two compilers",
    "tests/steps/test_own_cpu.py::test_results_do_not_*": "as the test in double that compares all",
    "tests/test_family.py::test_compiled_*": "compiles sixteen cells",
    "tests/test_family_published.py::*": "cells held against other packages, once",
    "tests/test_library*.py::*": "plants kills, full disks and bad entries",
    "tests/deploy/test_onnx.py::test_a_layer_that_is_a_loop": "exports each cell: seconds",
    "tests/deploy/test_onnx.py::test_what_a_layer_is_given": "exports each cell: seconds",
    "tests/test_derivatives.py::test_derivatives_against_*": "seconds a cell: some are the loop's",
    "tests/test_decompositions.py::test_it_is_trained_*": "exports each layer: slow",
    "tests/gpu_check/*": "a tool that measures a GPU",
    "tests/test_latency.py::*": "a model of a GPU",
    "tests/test_benchmarks*.py::*": "tools that measure",
    "tests/text/test_distributed.py::*": "training in several processes",
    "tests/clip/test_sharded.py::test_*_processes": "several processes",
    "tests/test_distributed.py::*": "several processes",
    "tests/test_checkpoint_every.py::test_opcheck": "torch's checks of an op, which are slow",
    "tests/test_ops.py::test_opcheck_backward": "torch's checks of an op, which are slow",
    "tests/test_surroundings.py::test_a_compiled_transform": "compiles each transform: slow",
    "tests/test_surroundings.py::test_a_transform_of_*": "compiles each transform: slow",
    "tests/test_decompositions.py::test_a_program_runs_*": "exports each layer: slow",
    "tests/test_trace.py::test_a_trace_runs_*": "traces each layer: slow",
    "tests/compat/*": "runs other packages",
    "tests/test_tiers.py::*": "tests the tiers themselves",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tier",
        choices=("all", "quick"),
        default="all",
        help="all (default), or quick: a fixed sample (tests/tiers.py)",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("tier", "all") != "quick":
        return
    chosen, why = choose(items)
    config.stash[_KEY] = (len(items), len(chosen), dict(why))
    kept = set(map(id, chosen))
    dropped = [item for item in items if id(item) not in kept]
    config.hook.pytest_deselected(items=dropped)
    items[:] = chosen


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the process that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None and _KEY in session.config.stash:
        output["tier"] = session.config.stash[_KEY]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told = getattr(node, "workeroutput", {}).get("tier")
    if told is not None:
        node.config.stash[_KEY] = told


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _KEY in config.stash:
        for line in summary(*config.stash[_KEY]):
            terminalreporter.write_line(line)


_KEY = pytest.StashKey[tuple[int, int, dict[str, int]]]()


def summary(every: int, chosen: int, why: Mapping[str, int]) -> list[str]:
    """What is said at the end: how many tests, and what was left to ``make test-all``."""
    lines = [f"quick tier: {chosen:,} of {every:,} tests; left to `make test-all`:"]
    return lines + [f"  {count:6,}  {reason}" for reason, count in why.items()]


ALIKE = "cases like those that ran: each pair of values ran (tests/tiers.py)"


def choose(items: Sequence[Any]) -> tuple[list[Any], Counter[str]]:
    """The items of the quick tier, in their order, and the number left out by reason."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        groups[item.nodeid.partition("[")[0]].append(item)
    kept: set[int] = set()
    why: Counter[str] = Counter()
    for name, cases in groups.items():
        reasons = [left_out(name) or left_out(case.nodeid) for case in cases]
        why.update(reason for reason in reasons if reason is not None)
        there = [case for case, reason in zip(cases, reasons, strict=True) if reason is None]
        sample = sampled(there)
        kept.update(map(id, sample))
        if len(there) > len(sample):
            why[ALIKE] += len(there) - len(sample)
    return [item for item in items if id(item) in kept], why


def left_out(name: str) -> str | None:
    """Why the quick tier leaves out the test, or the case, of this name; None if it does not."""
    for pattern, reason in LEFT_OUT.items():
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    return None


def sampled(cases: Sequence[Any]) -> list[Any]:
    """All of a few cases; of many, for every value of EACH, enough for every pair of values."""
    if len(cases) <= FEW:
        return list(cases)
    parts: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for case in cases:
        found = factors(case)
        parts[tuple(found.get(name, "") for name in EACH)].append(case)
    return [case for part in parts.values() for case in _covering(part)]


def factors(item: Any) -> dict[str, str]:
    """An item's parameters, as text; dataclasses, tuples and dicts taken apart."""
    spec = getattr(item, "callspec", None)
    found: dict[str, str] = {}
    for name, value in (spec.params if spec is not None else {}).items():
        found.update(_flat(name, value))
    return found


def _flat(name: str, value: Any) -> dict[str, str]:
    parts: dict[str, Any] | None = None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = value._asdict()
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        parts = value
    if parts is not None:
        return {k: v for n, part in parts.items() for k, v in _flat(f"{name}.{n}", part).items()}
    text = repr(value)  # where that is no name for the value, the object itself is one
    return {name: f"object {id(value)}" if " at 0x" in text else text}


def _pairs(values: Mapping[str, str]) -> set[tuple[str, ...]]:
    single = {(name, value) for name, value in values.items()}
    double = {a + b for a, b in itertools.combinations(sorted(single), 2)}
    return single | double


def _covering(cases: Sequence[Any]) -> list[Any]:
    """Cases that hold every pair of values that some case holds; none of them is needless."""
    pairs = {id(case): _pairs(factors(case)) for case in cases}
    order = sorted(cases, key=lambda case: hashlib.sha1(case.nodeid.encode()).digest())
    covered: Counter[tuple[str, ...]] = Counter()
    taken = []
    for case in order:
        if any(covered[pair] == 0 for pair in pairs[id(case)]):
            covered.update(pairs[id(case)])
            taken.append(case)
    for case in reversed(taken.copy()):
        if all(covered[pair] > 1 for pair in pairs[id(case)]):
            covered.subtract(pairs[id(case)])
            taken.remove(case)
    wanted = set(map(id, taken))
    return [case for case in cases if id(case) in wanted]


def uncovered(cases: Iterable[Any], sample: Iterable[Any]) -> set[tuple[str, ...]]:
    """The pairs of values that ``cases`` have and ``sample`` lacks."""
    every = set().union(*(_pairs(factors(case)) for case in cases))
    return every - set().union(*(_pairs(factors(case)) for case in sample))
