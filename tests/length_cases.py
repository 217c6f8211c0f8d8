"""Lengths out of range, which a device can't be asked about without waiting for it: the CUDA
kernels take them as within [0, T]."""

from __future__ import annotations

import torch
from torch import Tensor

from rnnfast.backends.base import Backend
from rnnfast.direct import run_direct

from .cases import Case, leaves, scan_of, with_gradients
from .cuda_cases import MATHS, TEAMS, forced

T, B = 5, 9
LENGTHS = torch.tensor([T + 1, -1, T, 2**40, 0, -(2**40), 3, 2**31, 2**32 + 2])
CELLS = ["rnn_tanh", "lstm", "gru", "gru_reset_before", "mgu"]
PLANS = [
    ("stepwise", "float32"),
    ("stepwise", "bfloat16"),
    ("resident", "float32"),
    *((plan, math) for plan in ("resident", *TEAMS) for math in ("tf32", "bfloat16")),
]


def assert_within_the_steps(
    backend: Backend, device: str, cell: str, plan: str, math: str, reverse: bool
) -> None:
    """The same results and gradients, bit by bit, as of lengths in [0, T]."""
    case = Case(cell, T, B, 3, 19, reverse=reverse, lengths=True, resets=True)
    found, expected = (
        _results(backend, device, case, lengths, plan, math)
        for lengths in (LENGTHS, LENGTHS.clamp(0, T))
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def _results(
    backend: Backend, device: str, case: Case, lengths: Tensor, plan: str, math: str
) -> dict[str, Tensor]:
    t = leaves(case, MATHS[math], device)
    scan = scan_of(case, t)._replace(lengths=lengths.to(device))
    with forced(plan, math):
        y, final, _ = run_direct(scan, backend)
        return with_gradients({"y": y, **dict(zip("hc", final, strict=False))}, t)
