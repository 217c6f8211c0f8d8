"""Faults planted in the resident CUDA kernels must turn the tests red (mutate.py runs them)."""

from __future__ import annotations

import pytest

from .mutants import Mutant, mutants
from .mutate import judge

# one of each kind that a kernel lives by; the rest is `slow`
SAMPLE = (
    "barrier:sequence_forward.h",
    "barrier:sequence_backward.h",
    "owner mask:sequence_forward.h",
    "reset mask:sequence_backward.h",
)


def first(prefix: str) -> Mutant:
    return next(m for m in mutants() if m.name.startswith(prefix) and not m.equivalent)


def test_the_kernels_as_they_are_pass() -> None:
    outcome = judge(None)
    assert not outcome.seen, outcome.how


@pytest.mark.parametrize("prefix", SAMPLE)
def test_a_planted_fault_is_seen(prefix: str) -> None:
    mutant = first(prefix)
    assert judge(mutant).seen, f"{mutant.name}: {mutant.before!r} -> {mutant.after!r} went unseen"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", mutants(), ids=lambda m: f"{m.name}@{m.at}")
def test_every_fault_is_seen_and_no_equivalent(mutant: Mutant) -> None:
    outcome = judge(mutant)
    assert outcome.right, outcome.how or "went unseen"
