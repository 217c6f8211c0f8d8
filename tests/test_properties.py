"""Properties over random shapes, lengths and resets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast
from rnnfast.backends import registry

from .cases import BUILT_IN, Case, leaves, oracle, refusal, run, scan_of
from .oracle import assert_all_close_to_oracle

CELLS = st.sampled_from(sorted(BUILT_IN))
few = settings(max_examples=25, deadline=None, derandomize=True)

cases = st.builds(
    Case,
    cell=CELLS,
    T=st.integers(1, 9),
    B=st.integers(1, 4),
    I=st.integers(1, 5),
    H=st.integers(2, 9),
    kind=st.sampled_from(["dense", "gates", "tokens"]),
    bias=st.booleans(),
    reverse=st.booleans(),
    lengths=st.booleans(),
    resets=st.booleans(),
    all_states=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 10_000),
).filter(lambda c: not (c.strided and c.kind == "tokens"))


@pytest.mark.parametrize("backend", registry.BACKENDS)
@given(case=cases)
@few
def test_any_problem_agrees_with_the_naive_loop(backend: str, case: Case) -> None:
    if refusal(case, backend, torch.float64) is not None:
        return  # its reasons are tested by name in test_selection
    assert_all_close_to_oracle(run(case, backend, torch.float64), oracle(case, torch.float64))


@given(case=cases, cut=st.integers(1, 8))
@few
def test_two_halves_are_the_whole(case: Case, cut: int) -> None:
    """A sequence run in two pieces, the state carried over."""
    case = Case(case.cell, T=max(case.T, 2), B=case.B, I=case.I, H=case.H, seed=case.seed)
    cut = min(cut, case.T - 1)
    whole = rnnfast.scratch.scratch_scan(scan_of(case, leaves(case, torch.float64)))
    scan = scan_of(case, leaves(case, torch.float64))
    first = rnnfast.scratch.scratch_scan(scan._replace(input=scan.input[:cut]))
    second = rnnfast.scratch.scratch_scan(scan._replace(input=scan.input[cut:], states=first.final))
    torch.testing.assert_close(torch.cat([first.y, second.y]), whole.y)
    torch.testing.assert_close(second.final, whole.final)


@given(case=cases)
@few
def test_a_reset_at_the_first_step_forgets_the_initial_state(case: Case) -> None:
    case = Case(case.cell, T=case.T, B=case.B, I=case.I, H=case.H, seed=case.seed)
    scan = scan_of(case, leaves(case, torch.float64))
    resets = torch.zeros(case.T, case.B, dtype=torch.bool)
    resets[0] = True
    forgotten = rnnfast.scratch.scratch_scan(scan._replace(resets=resets))
    zero = rnnfast.scratch.scratch_scan(
        scan._replace(states=[torch.zeros_like(s) for s in scan.states])
    )
    torch.testing.assert_close(forgotten.y, zero.y, rtol=0, atol=0)


@given(case=cases, order=st.randoms(use_true_random=False))
@few
def test_sequences_do_not_see_one_another(case: Case, order) -> None:
    """Permuting the batch permutes the results and changes nothing else."""
    t = {n: v.detach() for n, v in leaves(case, torch.float64).items()}
    permutation = list(range(case.B))
    order.shuffle(permutation)
    axis = {"x": 1, "resets": 1, "h": 0, "c": 0, "lengths": 0}
    moved = {
        n: v.index_select(axis[n], torch.tensor(permutation)) if n in axis else v
        for n, v in t.items()
    }
    y = rnnfast.scratch.scratch_scan(scan_of(case, t)).y[:, permutation]
    torch.testing.assert_close(rnnfast.scratch.scratch_scan(scan_of(case, moved)).y, y)
