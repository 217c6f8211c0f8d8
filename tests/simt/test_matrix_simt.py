"""Every cell, strategy, math, size and option of the CUDA kernels, executed on the CPU, against the
naive loop in float64."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from rnnfast import _ext

from ..cases import OPTIONS, Case
from ..cuda_cases import LARGE, MATHS, RESIDENT_CELLS, SIZES, TEAMS, Run, check, matrix
from .backend import Simt

KERNELS = {"stepwise": "stepwise_", "resident": "sequence_", "cluster": "team_", "grid": "team_"}


def check_on_simt(simt: Simt, asked: Run, route: str = "eager") -> None:
    check(asked, "simt", route=route)
    launches = simt.ops.launches()
    assert launches
    prefix = KERNELS[asked.strategy.split(":")[0]]
    assert all(name.startswith(prefix) for name in launches), launches
    if prefix != "stepwise_":
        assert launches == [f"{prefix}forward", f"{prefix}backward"]


@pytest.mark.parametrize("asked", matrix(SIZES, options=True), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_kernels_agree_with_the_naive_loop(simt: Simt, asked: Run) -> None:
    check_on_simt(simt, asked)


@pytest.mark.parametrize("asked", matrix(SIZES[1:], False, TEAMS), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_teams_of_blocks_agree_with_the_naive_loop(simt: Simt, asked: Run) -> None:
    check_on_simt(simt, asked)


TEAM_CASES = [Case(cell, 4, 9, 2, 19, **some) for cell in RESIDENT_CELLS for some in OPTIONS]


@pytest.mark.parametrize("case", TEAM_CASES, ids=str)
@pytest.mark.parametrize("strategy", TEAMS[::2])
@pytest.mark.usefixtures("poisoned")
def test_teams_of_blocks_with_every_option(simt: Simt, strategy: str, case: Case) -> None:
    check_on_simt(simt, Run(strategy, "bfloat16", case))


@pytest.mark.slow
@pytest.mark.parametrize("asked", matrix(LARGE, False, TEAMS), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_teams_of_blocks_at_large_sizes(simt: Simt, asked: Run) -> None:
    check_on_simt(simt, asked)


@pytest.mark.slow
@pytest.mark.parametrize("asked", matrix(LARGE, options=False), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_kernels_agree_with_the_naive_loop_at_large_sizes(simt: Simt, asked: Run) -> None:
    check_on_simt(simt, asked)


@pytest.mark.parametrize("case", [Case("lstm"), Case("gru", lengths=True)], ids=str)
@pytest.mark.parametrize("strategy", ["stepwise", "resident"])
@pytest.mark.usefixtures("poisoned")
def test_behind_the_op(simt: Simt, strategy: str, case: Case) -> None:
    check_on_simt(simt, Run(strategy, "float32", case), route="op")


NAMES = {"float32": "fp32", "tf32": "tf32", "bfloat16": "bf16", "float16": "fp16"}


def widest(backward: bool, cell: str, math: str, shape: int) -> int:
    """The largest H that this compiled shape takes on an H100; 0: there is no such shape."""
    forced = f"resident:{'backward' if backward else 'forward'}={shape}"
    dtype = str(MATHS[math]).removeprefix("torch.")
    for H in range(448, 0, -16):
        with contextlib.suppress(ValueError):  # it does not fit
            _ext.cpu().cuda_plan(
                backward=backward, cell=cell, dtype=dtype, tf32=math == "tf32", T=3, B=3, H=H, P=H,
                directions=1, device="H100", forced=forced,
            )  # fmt: skip
            return H
    return 0


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("math", NAMES)
@pytest.mark.parametrize("cell", RESIDENT_CELLS)
@pytest.mark.usefixtures("poisoned")
def test_each_compiled_shape_at_its_largest_h(
    simt: Simt, cell: str, math: str, backward: bool
) -> None:
    done = []
    for shape in itertools.count():
        H = widest(backward, cell, math, shape)
        if H == 0:
            break
        plan = f"resident:{'backward' if backward else 'forward'}={shape}"
        check(Run(plan, math, Case(cell, 3, 3, 2, H)), "simt")
        done.append(H)
    assert done == sorted(done)
    assert len(done) >= 1
