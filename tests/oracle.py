"""How close is close enough: one rule for every numeric test of the layers.

A result in a low precision is judged by what torch.nn itself achieves in that precision, both
measured against the same computation in float64. So the bound is earned by the case (a long sum
may lose digits, a short one may not) and never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLOAT64_RTOL = 1e-10
FLOAT64_ATOL = 1e-13
TORCH_ERROR_FACTOR = 2.0
EPS_OF_MAX = 4.0


def error_bound(ref64: Tensor, torch_same_precision: Tensor | None, dtype: torch.dtype) -> float:
    """The largest allowed |actual - ref64| for a result of `dtype`.

    float64: 1e-10 · max|ref64| + 1e-13. Below: twice the error of torch in the same precision, plus
    4 eps · max|ref64|.
    """
    scale = float(ref64.detach().abs().max()) if ref64.numel() else 0.0
    if dtype == torch.float64:
        return FLOAT64_RTOL * scale + FLOAT64_ATOL
    if torch_same_precision is None:
        raise ValueError(f"{dtype} needs torch's own result in the same precision to be judged by")
    torch_error = largest_error(torch_same_precision, ref64)
    return TORCH_ERROR_FACTOR * torch_error + EPS_OF_MAX * torch.finfo(dtype).eps * scale


def largest_error(actual: Tensor, ref64: Tensor) -> float:
    """max|actual - ref64| in float64, 0 for empty tensors."""
    if actual.numel() == 0:
        return 0.0
    return float((actual.detach().double() - ref64.detach()).abs().max())


def assert_close_to_oracle(
    actual: Tensor,
    ref64: Tensor,
    torch_same_precision: Tensor | None = None,
    *,
    name: str = "result",
) -> None:
    """Fails unless `actual` has the oracle's shape, is finite, and lies within `error_bound` of it.

    `ref64` is the float64 result and must be finite; `torch_same_precision` is torch's result in
    `actual`'s dtype (not needed for float64). Another shape or dtype than theirs fails too.
    """
    assert ref64.dtype == torch.float64, f"{name}: the oracle must be float64, got {ref64.dtype}"
    assert bool(torch.isfinite(ref64).all()), f"{name}: the oracle itself is not finite"
    assert actual.shape == ref64.shape, (
        f"{name}: shape {tuple(actual.shape)}, want {tuple(ref64.shape)}"
    )
    assert bool(torch.isfinite(actual).all()), f"{name}: has NaN or inf"
    if torch_same_precision is not None:
        assert actual.dtype == torch_same_precision.dtype, (
            f"{name}: dtype {actual.dtype}, torch gives {torch_same_precision.dtype}"
        )
    error = largest_error(actual, ref64)
    bound = error_bound(ref64, torch_same_precision, actual.dtype)
    assert error <= bound, f"{name}: off by {error:.3e}, allowed {bound:.3e} ({actual.dtype})"


def assert_all_close_to_oracle(
    actual: Mapping[str, Tensor],
    ref64: Mapping[str, Tensor],
    torch_same_precision: Mapping[str, Tensor] | None = None,
) -> None:
    """`assert_close_to_oracle` for every named tensor; the names must be the same set."""
    assert actual.keys() == ref64.keys(), f"named {sorted(actual)}, want {sorted(ref64)}"
    for name, reference in ref64.items():
        same = None if torch_same_precision is None else torch_same_precision[name]
        assert_close_to_oracle(actual[name], reference, same, name=name)
