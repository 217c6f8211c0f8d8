"""Faults planted in the resident CUDA kernels must turn the tests red (mutate.py runs them)."""

from __future__ import annotations

import pytest

from . import team_mutants
from .mutants import EQUIVALENT, Mutant, Rule, mutants, of_rule, rules
from .mutate import Outcome, judge, table

# one of each kind that a kernel lives by; the rest is `slow`
SAMPLE = (
    "barrier:solo/forward.h",
    "barrier:solo/backward.h",
    "owner mask:solo/forward.h",
    "reset mask:solo/backward.h",
    "wait:team/forward.h",
    "scope:team/grid.h",
    "two sets:team/cluster.h",
)


def first(prefix: str) -> Mutant:
    return next(m for m in mutants() if m.name.startswith(prefix) and not m.equivalent)


@pytest.mark.parametrize("rule", rules(), ids=lambda r: f"{r.kind}-{r.pattern}")
def test_every_rule_plants_something(rule: Rule) -> None:
    assert any(list(of_rule(rule, file)) for file in rule.files)


def test_every_reason_belongs_to_a_mutant() -> None:
    reasons = {m.equivalent for m in mutants()}
    assert reasons >= {*EQUIVALENT.values(), *team_mutants.EQUIVALENT.values()}


def test_the_table_counts_what_saw_a_fault() -> None:
    mutant = first("barrier")
    ends = ("y: off by 1 of 2", "k: a race [launch 1 of seed 1]", "signal 11", "did not end within")
    seen = [Outcome(mutant, True, how) for how in ends]
    shown = table([Outcome(None, False, ""), *seen, Outcome(mutant, False, "")])
    assert shown.splitlines()[1].split() == ["barrier", "5", "1", "1", "1", "1", "1"]


@pytest.mark.parametrize("program", ["mutant", team_mutants.PROGRAM])
def test_the_kernels_as_they_are_pass(program: str) -> None:
    outcome = judge(None, program)
    assert not outcome.seen, outcome.how


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("program", ["mutant", team_mutants.PROGRAM])
def test_the_kernels_as_they_are_pass_under(program: str, sanitizer: str) -> None:
    outcome = judge(None, program, sanitizer)
    assert not outcome.seen, outcome.how


@pytest.mark.slow
def test_a_missing_barrier_is_a_race() -> None:
    outcome = judge(first("barrier:solo/forward.h"), sanitize="thread")
    assert outcome.seen
    assert "data race" in outcome.how, outcome.how


@pytest.mark.parametrize("prefix", SAMPLE)
def test_a_planted_fault_is_seen(prefix: str) -> None:
    mutant = first(prefix)
    assert judge(mutant).seen, f"{mutant.name}: {mutant.before!r} -> {mutant.after!r} went unseen"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", mutants(), ids=lambda m: f"{m.name}@{m.at}")
def test_every_fault_is_seen_and_no_equivalent(mutant: Mutant) -> None:
    outcome = judge(mutant)
    assert outcome.right, outcome.how or "went unseen"
