"""Cells of one's own as Triton kernels, against the loop in plain torch."""

from __future__ import annotations

import pytest
import torch

from rnnfast.cells import CELLS, CellSpec

from ...steps.test_own_cpu import CALLS, CELLS_HERE, results, scan_of

HERE = [*CELLS_HERE, CELLS["block_gru"].with_settings(heads=4), CELLS["slstm"]]


def assert_as_good_as_the_loop(spec: CellSpec, dtype: torch.dtype, **call: object) -> None:
    """By the loop's own error in this precision."""
    call["positive"] = spec.name == "slstm"  # whose last state is what it divides by
    exact = results(scan_of(spec, **call), "loop")
    scan = scan_of(spec, dtype, **call)
    sizes = [true.abs().max() if true.numel() else torch.zeros(()) for true in exact]
    loops = [
        (plain.double() - true).abs().max() / size
        for plain, true, size in zip(results(scan, "loop"), exact, sizes, strict=True)
        if size > 0
    ]
    allowed = 2 * max(loops, default=0.0) + 4 * torch.finfo(dtype).eps
    for found, true, size in zip(results(scan, "triton"), exact, sizes, strict=True):
        assert found.dtype == dtype
        if true.numel():
            assert (found.double() - true).abs().max() <= allowed * size


def name_of(spec: CellSpec) -> str:
    return spec.name.rpartition(":")[2]


@pytest.fixture(autouse=True)
def _poisoned(poisoned: object) -> None:
    """What a kernel forgets to write shows."""


@pytest.mark.parametrize("call", list(CALLS))
@pytest.mark.parametrize("spec", HERE, ids=name_of)
def test_a_cell_is_the_loop(spec: CellSpec, call: str) -> None:
    assert_as_good_as_the_loop(spec, torch.float32, **CALLS[call])
