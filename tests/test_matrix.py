"""Every cell on every backend, dtype, size and option against the naive loop in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from rnnfast.backends import registry

from .cases import DTYPES, Case, matrix, oracle, refusal, run
from .oracle import assert_all_close_to_oracle, largest_error


def check(case: Case, backend: str, dtype: torch.dtype, route: str = "eager") -> None:
    reason = refusal(case, backend, dtype)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    same = None if dtype == torch.float64 else torchs_own(case, dtype)
    found = run(case, backend, dtype, route)
    assert_all_close_to_oracle(found, oracle(case, torch.float64), same)


@functools.lru_cache(maxsize=256)
def torchs_own(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """What torch reaches in this precision: of its cells in a loop and, where it has one, its
    layer, for each result the one that is further from float64."""
    by_cells, truth = oracle(case, dtype), oracle(case, torch.float64)
    if refusal(case, "torch", dtype) is not None:
        return by_cells
    by_layer = run(case, "torch", dtype)
    return {
        name: max(by_cells[name], by_layer[name], key=lambda t: largest_error(t, ref))
        for name, ref in truth.items()
    }


# the oracle is costly and cached: all backends of a case stand next to one another
@pytest.mark.parametrize("case", matrix(), ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("backend", registry.BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_backend_agrees_with_the_naive_loop(backend: str, dtype: torch.dtype, case: Case) -> None:
    check(case, backend, dtype)


COMPOSITE = [name for name, backend in registry.BACKENDS.items() if backend.composite]


@pytest.mark.parametrize("case", [c for c in matrix() if c.H <= 33], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("backend", COMPOSITE)
@pytest.mark.usefixtures("poisoned")
def test_composite_backend_behind_the_op(backend: str, dtype: torch.dtype, case: Case) -> None:
    check(case, backend, dtype, route="op")
