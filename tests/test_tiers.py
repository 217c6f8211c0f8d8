"""The two tiers of tests: that the quick one is a fair sample, and that nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from . import tiers

ROOT = Path(__file__).resolve().parents[1]
FEWEST = 10_500  # tests in all: who removes some says so here


@dataclass(frozen=True)
class Sizes:
    T: int
    options: dict


def item(name: str, **params: Any) -> SimpleNamespace:
    spec = SimpleNamespace(params=params)
    return SimpleNamespace(nodeid=f"{name}[{params}]" if params else name, callspec=spec)


CASES = [
    item("tests/a.py::test_many", backend=backend, dtype=dtype, case=Sizes(T, {"reverse": reverse}))
    for backend in ("cpu", "torch")
    for dtype in ("f32", "f64", "bf16")
    for T in (1, 2, 3, 4)
    for reverse in (True, False)
]


def of(backend: str, cases: list[Any]) -> list[Any]:
    return [case for case in cases if case.callspec.params["backend"] == backend]


def test_every_pair_of_values_is_in_the_sample() -> None:
    sample = tiers.sampled(CASES)
    assert len(sample) < len(CASES) / 1.5
    assert tiers.uncovered(CASES, sample) == set()
    for backend in ("cpu", "torch"):
        assert tiers.uncovered(of(backend, CASES), of(backend, sample)) == set()


def test_no_case_of_the_sample_is_needless() -> None:
    cases = of("cpu", CASES)
    sample = tiers.sampled(cases)
    for one in sample:
        assert tiers.uncovered(cases, [c for c in sample if c is not one])


def test_the_sample_is_fixed() -> None:
    names = [c.nodeid for c in tiers.sampled(CASES)]
    assert sorted(names) == sorted(c.nodeid for c in tiers.sampled(CASES[::-1]))


def test_few_cases_are_kept_and_their_order_too() -> None:
    few = [item("tests/a.py::test_few", n=n) for n in range(tiers.FEW)]
    alone = item("tests/a.py::test_alone")
    left = item("tests/simt/test_mutation.py::test_x", n=1)
    chosen, why = tiers.choose([left, *few, alone])
    assert chosen == [*few, alone]
    assert dict(why) == {tiers.left_out("tests/simt/test_mutation.py::test_x"): 1}


def test_cases_are_left_out_by_their_parameters() -> None:
    name = "tests/contract/test_x.py::test_shapes"
    kept, *left = (SimpleNamespace(nodeid=f"{name}[{p}]") for p in ("own-lstm", "own-rnn_tanh"))
    chosen, why = tiers.choose([kept, *left])
    assert chosen == [kept]
    assert dict(why) == {tiers.left_out(left[0].nodeid): 1}


def test_a_value_that_only_one_case_has_is_never_left_out() -> None:
    odd = item("tests/a.py::test_many", backend="cpu", dtype="odd", case=Sizes(9, {}))
    assert odd in tiers.sampled([*CASES, odd])


@pytest.fixture(scope="module")
def collected() -> dict[str, set[str]]:
    """Node ids by tier, as pytest collects them."""
    found = {}
    for tier in ("all", "quick"):
        command = [sys.executable, "-m", "pytest", "--co", "-q", "--tier", tier]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found[tier] = {line for line in done.stdout.splitlines() if "::" in line}
        found[f"{tier} says"] = {line for line in done.stdout.splitlines() if "::" not in line}
    return found


def test_nothing_is_lost(collected: dict[str, set[str]]) -> None:
    every, quick = collected["all"], collected["quick"]
    assert len(every) >= FEWEST
    assert quick < every
    tests = defaultdict(int)
    for name in every:
        tests[name.partition("[")[0]] += 1
    ran = {name.partition("[")[0] for name in quick}
    without = {name for name in tests if name not in ran}
    assert {name for name in without if tiers.left_out(name) is None} == set()
    assert {name for name in ran if tiers.left_out(name) is not None} == set()


def test_what_is_left_out_is_shown_and_adds_up(collected: dict[str, set[str]]) -> None:
    lines = sorted(line for line in collected["quick says"] if line.startswith("  "))
    counts = [int(line.split()[0].replace(",", "")) for line in lines]
    assert sum(counts) == len(collected["all"]) - len(collected["quick"])
    assert any(tiers.ALIKE in line for line in lines)


def test_every_pattern_still_names_a_test(collected: dict[str, set[str]]) -> None:
    every = collected["all"]
    names = every | {name.partition("[")[0] for name in every}
    for pattern in tiers.LEFT_OUT:
        assert tiers.fnmatch.filter(names, pattern), f"{pattern} names nothing"
