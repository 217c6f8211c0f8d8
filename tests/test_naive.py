"""The oracle's two loops agree: one sequence at a time, and all of them by masks."""

from __future__ import annotations

import pytest
import torch

from . import cases
from .cases import BUILT_IN, OPTIONS, Case, oracle


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cell", BUILT_IN)
def test_both_loops_agree(cell: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(cell, T=5, B=4, I=3, H=3, **options)
    found = []
    for few in (0, 10**6):
        monkeypatch.setattr(cases, "FEW_STEPS", few)
        found.append(oracle.__wrapped__(case, torch.float64))
    assert found[0].keys() == found[1].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_without_a_step(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("lstm", T=3, B=3, lengths=True, reverse=reverse, all_states=True)
    given = {**cases.tensors(case), "lengths": torch.tensor([0, 2, 0])}
    monkeypatch.setattr(cases, "tensors", lambda _: given)
    for few in (0, 10**6):
        monkeypatch.setattr(cases, "FEW_STEPS", few)
        found = oracle.__wrapped__(case, torch.float64)
        assert not found["y"][:, ::2].any()
        assert found["y"][:2, 1].all()
        assert torch.equal(found["h"][::2], given["h"][::2])
        assert torch.equal(found["grad of h"][::2], given["dh"][::2])
