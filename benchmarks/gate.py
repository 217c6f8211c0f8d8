"""The correctness gate: no layer is timed before its numbers are right.

Both layers are compared with torch.nn in float64. A candidate passes where its error is at most
twice the error of torch.nn in the same precision, plus 4 eps times the largest value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .workload import LayerWork

NEAR = 4.0  # times its tolerance: an error up to here is a near miss, which is timed and told


@dataclass(frozen=True)
class Deviation:
    """The largest error of one tensor (`y`, `h_n`, `c_n`, `dx`, `d<parameter>`) and its limit."""

    name: str
    error: float
    tolerance: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN

    def __str__(self) -> str:
        return self.reason or f"{self.name}: error {self.error:.2e} > {self.tolerance:.2e}"


@dataclass(frozen=True)
class Verdict:
    deviations: tuple[Deviation, ...]

    @property
    def passed(self) -> bool:
        return all(deviation.passed for deviation in self.deviations)

    @property
    def near(self) -> bool:
        """Whether it fails, and nothing is off by more than NEAR tolerances."""
        return not self.passed and all(d.error <= NEAR * d.tolerance for d in self.deviations)

    @property
    def reason(self) -> str:
        """What failed, in a line; empty where nothing did."""
        return "; ".join(str(item) for item in self.deviations if not item.passed)

    @property
    def worst(self) -> float:
        """The largest error as a share of its tolerance."""
        shares = [
            d.error / d.tolerance if d.tolerance else math.inf for d in self.deviations if d.error
        ]
        return max(shares, default=0.0)


def check(reference: LayerWork, candidate: LayerWork) -> Verdict:
    """Runs what would be timed and compares every result of it.

    reference: the torch.nn side, in the precision that is timed.
    candidate: a layer with the same weights and data.
    """
    dtype = reference.x.dtype
    exact = results(reference.to(torch.float64))
    errors = {name: error * 2 for name, error in _torch_errors(reference, exact, dtype).items()}
    got = results(candidate)
    eps = torch.finfo(dtype).eps
    return Verdict(
        tuple(
            _compare(name, got.get(name), value, errors[name] + 4 * eps * _largest(value), dtype)
            for name, value in exact.items()
        )
    )


def results(work: LayerWork) -> dict[str, Tensor]:
    """Everything that one call of `work` computes, by name; a gradient it left out is missing."""
    work.prepare()
    y, state = work()
    named = {"y": y}
    if isinstance(state, tuple):
        named["h_n"], named["c_n"] = state
    else:
        named["h_n"] = state
    if work.mode == "train":
        leaves = {"x": work.x, **dict(work.layer.named_parameters())}
        named |= {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: tensor.detach() for name, tensor in named.items()}


def _torch_errors(
    reference: LayerWork, exact: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, float]:
    """In float64, where nothing more exact is at hand: the float32 error, scaled by both eps."""
    scale = 1.0
    if dtype == torch.float64:
        reference = reference.to(torch.float32)
        scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return {
        name: scale * _largest(value.double() - exact[name])
        for name, value in results(reference).items()
    }


def _compare(
    name: str, got: Tensor | None, exact: Tensor, tolerance: float, dtype: torch.dtype
) -> Deviation:
    if got is None:
        return Deviation(name, math.inf, tolerance, f"{name}: missing")
    if got.shape != exact.shape or got.dtype != dtype:
        found, wanted = f"{tuple(got.shape)} {got.dtype}", f"{tuple(exact.shape)} {dtype}"
        return Deviation(name, math.inf, tolerance, f"{name}: expected {wanted}, got {found}")
    return Deviation(name, _largest(got.double() - exact), tolerance)


def _largest(value: Tensor) -> float:
    return value.abs().max().item()
