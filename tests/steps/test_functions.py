"""Functions that generated loops compute by vectors: how many units of the last place they are off,
and what is infinite, no number or a zero with a sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rnnfast
from rnnfast import library
from rnnfast.backends import own_cpu
from rnnfast.problem import Options, Scan

pytestmark = pytest.mark.skipif(
    library.why_not() is not None, reason=f"nothing compiles here: {library.why_not()}"
)

EXACT = ("floor", "ceil", "round", "trunc")
NAMES = ("exp", "expm1", "log", "log1p", "sqrt", *EXACT)


@rnnfast.cell(gates=1, states=NAMES, recurrent=None)
def each(gx, states, w):
    return tuple(getattr(torch, name)(gx) for name in NAMES)


def points(dtype: torch.dtype) -> torch.Tensor:
    info, make = torch.finfo(dtype), torch.Generator().manual_seed(0)
    highest = 80.0 if dtype == torch.float32 else 700.0
    x = torch.cat(
        [
            torch.linspace(-12, 12, 20_001, dtype=dtype),
            torch.logspace(-300, 1.9, 20_000, dtype=torch.float64).to(dtype),
            (2 * torch.rand(20_000, generator=make, dtype=dtype) - 1) * highest,
            torch.rand(10_000, generator=make, dtype=dtype) * 0.1 + 0.95,
            torch.tensor([0.0, 0.5, 1.0, 1.5, 2.5, 2.0**23, 2.0**52, info.tiny / 8], dtype=dtype),
            torch.tensor([info.max, torch.inf, torch.nan], dtype=dtype),
        ]
    )
    return torch.cat([x, -x])


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=str)
def made(request: pytest.FixtureRequest) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The points, and what each function made of them."""
    x = points(request.param)
    states = [torch.zeros(1, len(x), dtype=x.dtype) for _ in NAMES]
    scan = Scan(
        each.name, "gates", x.view(1, 1, -1), states, [], None, None, Options(training=False)
    )
    (_, final, _), _ = own_cpu.forward(scan)
    return x.numpy(), {n: s[0].numpy() for n, s in zip(NAMES, final, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_values(made: tuple[np.ndarray, dict[str, np.ndarray]], name: str) -> None:
    x, found = made[0], made[1][name]
    with np.errstate(all="ignore"):
        exact = getattr(np, "rint" if name == "round" else name)(x.astype(np.longdouble))
        rounded = exact.astype(x.dtype)
    finite, tiny = np.isfinite(rounded), np.finfo(x.dtype).tiny
    normal = finite & (np.abs(rounded) >= tiny)  # what exp makes below is 0 or near
    with np.errstate(over="ignore"):  # of the largest number: inf
        error = np.abs(found[normal] - exact[normal]) / np.spacing(np.abs(rounded[normal]))
    assert error.max() <= (0 if name in EXACT else 2)
    assert np.abs(found[finite & ~normal]).max(initial=0) <= tiny
    assert np.array_equal(found[~finite], rounded[~finite], equal_nan=True)
    zero = rounded == 0
    assert np.array_equal(np.signbit(found[zero]), np.signbit(rounded[zero]))
