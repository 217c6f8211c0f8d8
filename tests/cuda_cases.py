"""The matrix of the CUDA kernels, and how one run of it is judged: for the backend ``cuda`` on a
device, and for ``simt``, the same kernels on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rnnfast.inspect.cuda import CELL_TYPES

from .cases import BUILT_IN, OPTIONS, Case, run
from .oracle import assert_all_close_to_oracle, error_bound, largest_error
from .test_matrix import yardsticks

# Ways of computing a recurrent product: its name here, the dtype of storage.
MATHS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
RESIDENT_CELLS = tuple(CELL_TYPES)  # those that a kernel keeps the weights of
EVERYTHING = {"lengths": True, "resets": True, "reverse": True, "all_states": True}
# T, B, I, H: one of all; one step; H of no round number; batch tiles of 8, the last with one in it
SIZES = ((1, 1, 1, 1), (63, 5, 1, 33), (1, 5, 7, 96), (5, 17, 3, 40))
LARGE = ((63, 1, 3, 257), (300, 9, 2, 65))


@dataclass(frozen=True)
class Run:
    """A case, the strategy that is forced and the math."""

    strategy: str
    math: str
    case: Case

    def __str__(self) -> str:
        return f"{self.strategy}-{self.math}-{self.case}"

    @property
    def dtype(self) -> torch.dtype:
        return MATHS[self.math]


# Teams of blocks, too small to be of use: of several blocks, several teams, several batch tiles.
TEAMS = ("cluster:blocks=3", "grid:blocks=3,teams=2", "grid:blocks=4,teams=1")


def matrix(
    sizes: tuple[tuple[int, int, int, int], ...],
    options: bool,
    strategies: tuple[str, ...] = ("stepwise", "resident"),
) -> list[Run]:
    """Every cell, strategy and math at these sizes, with and without everything on; ``options``:
    every option at a small size, too."""
    cases = []
    for cell in BUILT_IN:
        cases += [Case(cell, **some) for some in OPTIONS] if options else []
        for size in sizes:
            plain = Case(cell, *size)
            cases += [plain, replace(plain, **EVERYTHING)]
    return [
        Run(strategy, math, case)
        for strategy in strategies
        for math in MATHS
        for case in cases
        if _exists(strategy, math, case)
    ]


def _exists(strategy: str, math: str, case: Case) -> bool:
    if strategy == "stepwise":
        return math != "tf32"  # torch's products there; how they are computed is not ours
    if strategy in TEAMS:
        return math not in ("float64", "float32") and case.cell in RESIDENT_CELLS
    widest = 384 if case.cell.startswith("rnn") else 128  # that any math has a shape for
    return math != "float64" and case.cell in RESIDENT_CELLS and case.H <= widest


@contextmanager
def forced(plan: str, math: str = "float32") -> Iterator[None]:
    """RNNFAST_PLAN, and torch's switch for tf32, within the block."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if math == "tf32" else "ieee"
    os.environ["RNNFAST_PLAN"] = plan
    try:
        yield
    finally:
        del os.environ["RNNFAST_PLAN"]
        torch.backends.cudnn.rnn.fp32_precision = before


def check(asked: Run, backend: str, device: str = "cpu", route: str = "eager") -> None:
    """Runs it, and compares with the naive loop in float64."""
    with forced(asked.strategy, asked.math):
        found = run(asked.case, backend, asked.dtype, route, device)
    found = {name: value.cpu() for name, value in found.items()}
    if asked.math == "tf32":
        assert_close_in_tf32(found, asked.case)
    else:
        assert_all_close_to_oracle(found, *yardsticks(asked.case, asked.dtype, found["y"]))


def assert_close_in_tf32(found: dict[str, Tensor], case: Case) -> None:
    """The yardstick is float16, which has tf32's mantissa and rounds more than operands."""
    truth, yardstick = yardsticks(case, torch.float16, found["y"])
    assert yardstick is not None
    assert found.keys() == truth.keys()
    for name, reference in truth.items():
        assert bool(torch.isfinite(found[name]).all()), name
        error = largest_error(found[name], reference)
        bound = error_bound(reference, yardstick[name], torch.float16)
        assert error <= bound, f"{name}: off by {error:.3e}, allowed {bound:.3e}"
