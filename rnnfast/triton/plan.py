"""Which strategy and which tiles a scan gets. Nothing here imports Triton, or asks a device."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from ..problem import Problem
from .limits import limit_of

STRATEGY = "RNNFAST_TRITON_STRATEGY"
RESIDENT_BATCH = 16  # sequences of a resident program: the least that fills a tensor core's tile


class Tiling(NamedTuple):
    """How one pass is computed.

    Attributes:
        resident: one program for all steps of a batch tile, else one launch a step.
        block_b, block_h, block_k, block_p: tile sizes: batch, hidden units, summands of a product
            (stepwise), outputs (resident). Powers of two, at least 16.
        num_warps, num_stages: Triton's.
    """

    resident: bool
    block_b: int
    block_h: int
    block_k: int
    block_p: int
    num_warps: int
    num_stages: int

    def describe(self) -> str:
        """In words, for ``explain``."""
        if self.resident:
            return f"resident (one launch), {self.block_b} sequences a program"
        return f"stepwise (a launch a step), tiles of {self.block_b} by {self.block_h} units"

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

    @property
    def blocks(self) -> dict[str, Any]:
        """By the names of the kernels' arguments."""
        sizes = (self.block_b, self.block_h, self.block_k, self.block_p)
        return dict(zip(("BLOCK_B", "BLOCK_H", "BLOCK_K", "BLOCK_P"), sizes, strict=True))


class Device(NamedTuple):
    """What choosing a tiling looks at. ``arch``: as limits.json has it; ``shared``: bytes that one
    program may ask for."""

    name: str
    arch: str
    shared: int


INTERPRETER = Device("interpreter", "90", 227 << 10)  # tilings as for an sm_90


def math_of(dtype: torch.dtype) -> str:
    """How the recurrent product is computed: ``bf16``, ``fp16``, ``tf32`` or ``fp32``.

    float32 follows the switch of torch's own RNNs.
    """
    if dtype != torch.float32:
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    switch = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if switch == "tf32" else "fp32"


def demanded() -> str:
    """RNNFAST_TRITON_STRATEGY. Raises ValueError where it is none of the three words."""
    word = os.environ.get(STRATEGY, "auto")
    if word not in ("auto", "resident", "stepwise"):
        raise ValueError(f"{STRATEGY} should be auto, resident or stepwise, got: {word!r}")
    return word


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n, and at least 16, the least a product takes."""
    return max(16, 1 << (n - 1).bit_length())


def resident_tiling(H: int, P: int, block_b: int = RESIDENT_BATCH, num_warps: int = 8) -> Tiling:
    return Tiling(True, block_b, power_of_two(H), 0, power_of_two(P), num_warps, 1)


def stepwise_tiling(
    block_b: int = 16, block_h: int = 32, block_k: int = 64, num_warps: int = 4, num_stages: int = 3
) -> Tiling:
    return Tiling(False, block_b, block_h, block_k, 0, num_warps, num_stages)


def staged_bytes(tiling: Tiling, gates: int, itemsize: int) -> int:
    """Shared memory that a stepwise kernel asks for at most: the tiles of its product, states in
    float32 and weights, once for each stage of the pipeline that loads them."""
    summand = tiling.block_b * 4 + gates * tiling.block_h * itemsize
    return tiling.num_stages * tiling.block_k * summand


def fitting(tiling: Tiling, planes: int, itemsize: int, device: Device) -> Tiling:
    """The tiling with so many summands at a time as fit the device."""
    while tiling.block_k > 16 and staged_bytes(tiling, planes, itemsize) > device.shared:
        tiling = tiling._replace(block_k=tiling.block_k // 2)
    return tiling


def candidates(
    direction: str,
    problem: Problem,
    device: Device,
    math: str | None = None,
    strategy: str | None = None,
) -> list[Tiling]:
    """The tilings that come into question, the one for want of a measurement first.

    Resident where it fits. Stepwise: a program for each 32 units is enough to occupy a GPU from
    H = 1024 on, below narrower tiles make more programs; a large batch wants tiles with more rows,
    which read the weights less often. ``math``, ``strategy``: not torch's switch, not
    RNNFAST_TRITON_STRATEGY.
    """
    forced = strategy or demanded()
    found = []
    limit = limit_of(
        device.arch, math or math_of(problem.dtype), problem.cell, direction, device.shared
    )
    tile = power_of_two(max(problem.H, problem.P))
    if forced != "stepwise" and limit is not None and tile <= limit.block_h:
        smaller = max(4, limit.num_warps * tile // limit.block_h)
        warps = limit.num_warps if tile == limit.block_h else min(limit.num_warps, smaller)
        found.append(resident_tiling(problem.H, problem.P, num_warps=warps))
    if forced == "resident":
        return found
    if device == INTERPRETER and problem.H > 64:  # its time goes by operations, not their size
        return [*found, stepwise_tiling(16, 128, 128)]
    few, many, narrow = (
        fitting(tiling, problem.spec.gates, problem.dtype.itemsize, device)
        for tiling in (stepwise_tiling(), stepwise_tiling(64), stepwise_tiling(16, 16, 128))
    )
    return found + ([few, narrow] if problem.B <= 32 else [many, few])


def why_not_resident(problem: Problem, device: Device) -> str | None:
    """The reason where resident kernels are demanded and can't take it."""
    if demanded() != "resident":
        return None
    for direction in ("forward", "backward"):
        if not candidates(direction, problem, device):
            math = math_of(problem.dtype)
            limit = limit_of(device.arch, math, problem.cell, direction, device.shared)
            most = "none" if limit is None else f"H up to {limit.block_h}"
            return (
                f"{STRATEGY}=resident, and of the resident {direction} kernels of "
                f"{problem.cell} in {math} {most} fits this device"
            )
    return None
