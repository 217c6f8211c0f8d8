"""Every cell, strategy, math, size and option of the CUDA kernels, executed on the CPU, against the
naive loop in float64."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from rnnfast import _ext

from ..cases import Case
from ..cuda_cases import LARGE, MATHS, SIZES, Run, check, matrix
from .backend import Simt

KERNELS = {"stepwise": "stepwise_", "resident": "sequence_"}


def check_on_simt(simt: Simt, asked: Run, route: str = "eager") -> None:
    check(asked, "simt", route=route)
    launches = simt.ops.launches()
    assert launches
    assert all(name.startswith(KERNELS[asked.strategy]) for name in launches), launches
    if asked.strategy == "resident":
        assert launches == ["sequence_forward", "sequence_backward"]


@pytest.mark.parametrize("asked", matrix(SIZES, options=True), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_kernels_agree_with_the_naive_loop(simt: Simt, asked: Run) -> None:
    check_on_simt(simt, asked)


@pytest.mark.slow
@pytest.mark.parametrize("asked", matrix(LARGE, options=False), ids=str)
@pytest.mark.usefixtures("poisoned")
def test_kernels_agree_with_the_naive_loop_at_large_sizes(simt: Simt, asked: Run) -> None:
    check_on_simt(simt, asked)


@pytest.mark.parametrize("case", [Case("lstm"), Case("gru", lengths=True)], ids=str)
@pytest.mark.parametrize("strategy", KERNELS)
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
            numbers = (3, 3, H, H, 1)
            _ext.load().cuda_plan(backward, cell, dtype, math == "tf32", *numbers, "H100", forced)
            return H
    return 0


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("math", NAMES)
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"])
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
