"""One case by one strategy: is it right, and how long does it take."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..backends.qualified import ABSENT, RIGHT
from ..backends.registry import BackendError
from ..cells import CELLS
from ..functional import scan
from ..problem import Options, Scan, ScanResult
from ..scratch import scratch_loop
from ..tuning import measure
from .spread import Case, Way

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FACTOR, EPS_OF_MAX = 2.0, 4.0  # of torch's own error, and of the largest value: what is allowed
EPS = {"tf32": 2.0**-10}  # of its mantissa

Found = dict[str, Any]
Results = dict[str, Tensor]
Pass = Callable[[dict[str, Tensor]], ScanResult]  # of the case's tensors


def judge(case: Case, way: Way, device: str, seconds: float) -> Found:
    """``{"state": …}``, and where it is right and was to be timed ``us`` and ``torch_us``."""
    with _precision(case.math):
        try:
            with _demanded(way):
                plain, masked = (_run(case, device, ours) for ours in _passes(case, way, device))
        except BackendError as error:
            return {"state": ABSENT, "why": str(error)}
        except ValueError as error:
            if way.strategy and way.variable in str(error):
                return {"state": ABSENT, "why": str(error)}
            raise
        wrong = _compare(case, plain, masked, device)
        if wrong is not None:
            return {"state": wrong}
        if way.strategy or CELLS[case.cell].torch_mode is None:
            return {"state": RIGHT}
        with _demanded(way):
            return {"state": RIGHT, **_times(case, way.backend, device, seconds)}


def _compare(case: Case, plain: Results, masked: Results, device: str) -> str | None:
    """What is wrong with the results of the two passes, by twice what torch itself is off by in
    this way of computing."""
    truth, masked_truth = (
        _run(case, device, right, torch.float64)
        for right in _passes(case, Way("reference", "", ""), device)
    )
    torchs = _torchs_own(case, device)
    eps = EPS.get(case.math, torch.finfo(DTYPES[case.math]).eps)
    for name, value in truth.items():
        torchs_error = _off(torchs[name], value)
        for what, found, right in (
            ("", plain[name], value),
            ("reversed, with lengths and resets: ", masked[name], masked_truth[name]),
        ):
            allowed = FACTOR * torchs_error + EPS_OF_MAX * eps * float(right.abs().max())
            off = _off(found, right)
            if not off <= allowed:  # a NaN is none
                return f"{what}{name} is off by {off:.2g}, {allowed:.2g} is allowed"
    return None


def _off(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max())


def _torchs_own(case: Case, device: str) -> Results:
    """What torch makes of it: by its kernel or, where it has none, by the loop with every step
    rounded; for tf32 in float16, whose mantissa is as long."""
    if CELLS[case.cell].torch_mode is not None:
        return _run(case, device, _passes(case, Way("torch", "", ""), device)[0])

    def loop(t: dict[str, Tensor]) -> ScanResult:
        states, weights = _parts(case, t)
        options = Options(training=case.training)
        return scratch_loop(Scan(case.cell, "dense", t["x"], states, weights, None, None, options))

    return _run(case, device, loop, torch.float16 if case.math == "tf32" else DTYPES[case.math])


def _passes(case: Case, way: Way, device: str) -> tuple[Pass, Pass]:
    """By a backend: as it is, and with what moves starts and ends."""
    g = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, case.T + 1, (case.B,), generator=g, device="cpu")
    lengths[0] = case.T
    resets = torch.rand(case.T, case.B, generator=g, device="cpu") < 0.1
    masks = {"lengths": lengths.to(device), "resets": resets.to(device), "reverse": True}

    def plain(t: dict[str, Tensor], **options: Any) -> ScanResult:
        return scan(case.cell, t["x"], *_parts(case, t), backend=way.backend, **options)

    return plain, lambda t: plain(t, **masks)


def _parts(case: Case, t: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """States, weights."""
    spec = CELLS[case.cell]
    return [t[n] for n in spec.states], [t[n] for n in spec.weight_names("dense", True)]


def _run(case: Case, device: str, computed: Pass, dtype: torch.dtype | None = None) -> Results:
    """Outputs and gradients; ``dtype``: another than the case's."""
    t = _tensors(case, device, dtype)
    with torch.set_grad_enabled(case.training):
        y, final, _ = computed(t)
    found = {"y": y, **dict(zip(("h", "c"), final, strict=False))}
    if case.training:
        g = torch.Generator().manual_seed(2)
        upstream = [
            _rounded(torch.randn(v.shape, generator=g, device="cpu"), case, v)
            for v in found.values()
        ]
        grads = torch.autograd.grad(list(found.values()), list(t.values()), upstream)
        found |= {f"grad of {n}": grad for n, grad in zip(t, grads, strict=True)}
    return {n: v.detach() for n, v in found.items()}


def _tensors(case: Case, device: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The same numbers for every ``dtype``, those that the case's own has."""
    g = torch.Generator().manual_seed(1)
    spec, H = CELLS[case.cell], case.H
    P = H // 2 if spec.projected else H
    shapes: dict[str, tuple[int, ...]] = {
        "w_ih": (spec.gates * H, H),
        "w_hh": (spec.gates * H, P),
        "w_hr": (P, H),
        "b_ih": (spec.gates * H,),
        "b_hh": (spec.gates * H,),
    }
    made = {}
    for name in spec.weight_names("dense", True):
        made[name] = (torch.rand(shapes[name], generator=g, device="cpu") * 2 - 1) / H**0.5
    for name in spec.states:
        made[name] = torch.randn(case.B, P if name == "h" else H, generator=g, device="cpu")
    made["x"] = torch.randn(case.T, case.B, H, generator=g, device="cpu")
    like = torch.empty(0, dtype=dtype or DTYPES[case.math], device=device)
    return {n: _rounded(t, case, like).requires_grad_(case.training) for n, t in made.items()}


def _rounded(numbers: Tensor, case: Case, like: Tensor) -> Tensor:
    return numbers.to(DTYPES[case.math]).to(like.device, like.dtype)


def _times(case: Case, backend: str, device: str, seconds: float) -> dict[str, float]:
    t = _tensors(case, device)

    def call() -> None:
        with torch.set_grad_enabled(case.training):
            y = scan(case.cell, t["x"], *_parts(case, t)).y
        if case.training:
            torch.autograd.grad(y, list(t.values()), torch.ones_like(y), allow_unused=True)

    samples = measure(call, ["torch", backend], seconds)
    us = {name: statistics.median(times) * 1e6 for name, times in samples.items()}
    return {"us": us[backend], "torch_us": us["torch"]}


@contextmanager
def _demanded(way: Way) -> Iterator[None]:
    before = os.environ.pop(way.variable, None)
    if way.strategy:
        os.environ[way.variable] = way.strategy
    try:
        yield
    finally:
        os.environ.pop(way.variable, None)
        if before is not None:
            os.environ[way.variable] = before


@contextmanager
def _precision(math: str) -> Iterator[None]:
    switch: Any = torch.backends.cudnn.rnn
    before = switch.fp32_precision
    switch.fp32_precision = "tf32" if math == "tf32" else "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


Judge = Callable[[Case, Way, str, float], Found]
