"""Cells of one's own in CUDA C++ on a GPU; tests/simt/test_own_simt.py and test_own_resident.py
have them executed."""

from __future__ import annotations

import os

import pytest
import torch

from rnnfast import library
from rnnfast.backends import registry
from rnnfast.cells import CellSpec

from .. import own_cells
from ..cuda_cases import forced
from ..simt import test_own_resident
from ..simt.own_cases import CELLS_HERE, check_lengths, name_of
from ..steps import test_own_cpu as own

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic, as `poisoned` asks for
UNUSABLE = registry.BACKENDS["cuda"].unusable()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(UNUSABLE is not None, reason=str(UNUSABLE)),
    pytest.mark.usefixtures("poisoned"),
]


@pytest.fixture(autouse=True)
def _with_nvcc() -> None:
    problem = library.why_not(target=library.cuda_target(*torch.cuda.get_device_capability()))
    if problem is not None:
        pytest.skip(f"nothing compiles here: {problem}")


@pytest.mark.parametrize("call", list(own.CALLS))
@pytest.mark.parametrize("spec", CELLS_HERE, ids=name_of)
def test_a_cell_is_the_loop(spec: CellSpec, call: str) -> None:
    with forced("stepwise"):
        own.check(spec, torch.float32, "cuda", "cuda", **own.CALLS[call])


@pytest.mark.parametrize("call", list(own.CALLS))
@pytest.mark.parametrize("spec", test_own_resident.CELLS_HERE, ids=name_of)
def test_a_cell_in_one_launch_a_pass_is_the_loop(spec: CellSpec, call: str) -> None:
    with forced("resident"):
        own.check(spec, torch.float32, "cuda", "cuda", **own.CALLS[call])


@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
@pytest.mark.parametrize("plan", ["stepwise", "resident"])
def test_lengths_count_within_the_steps(plan: str, reverse: bool) -> None:
    with forced(plan):
        check_lengths(own_cells.three_states, "cuda", reverse, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("H", [33, 72, 128])
def test_16_bit_storage_in_one_launch_a_pass(dtype: torch.dtype, H: int) -> None:
    with forced("resident"):
        own.check(own_cells.peephole, dtype, "cuda", "cuda", H=H, B=11, T=5)


@pytest.mark.parametrize("H", [1, 33, 260])
@pytest.mark.parametrize("B", [3, 70])
def test_sizes_that_fill_no_tile(H: int, B: int) -> None:
    with forced("stepwise"):
        own.check(CELLS_HERE[0], torch.float32, "cuda", "cuda", H=H, B=B, T=3)
