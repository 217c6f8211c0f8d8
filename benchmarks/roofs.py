"""What the processor can do at most: multiply-adds in registers, and bytes from memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from rnnfast import _ext

TRIAD_BYTES = 3 << 26  # far beyond a last cache


def of(device: str, threads: int) -> dict[str, float] | None:
    """`peak_gflops` and `bandwidth_gb_s` of so many threads; None where they can't be measured."""
    if device != "cpu" or _ext.why_no_cpu() is not None:
        return None
    return {
        "peak_gflops": round(multiply_adds(threads) / 1e9, 1),
        "bandwidth_gb_s": round(bandwidth(threads) / 1e9, 1),
    }


def multiply_adds(threads: int, seconds: float = 0.2) -> float:
    """Floating-point operations a second in float32: the best of some rounds."""
    module: Any = _ext.cpu()
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        done = module.cpu_multiply_adds(100_000, threads)
        best = max(best, done / (time.perf_counter() - start))
    return best


def bandwidth(threads: int, rounds: int = 5) -> float:
    """Bytes a second of a sum of two large arrays written to a third, the best of some rounds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right, total = (torch.zeros(TRIAD_BYTES // 12) for _ in range(3))
        best = 0.0
        for _ in range(rounds):
            start = time.perf_counter()
            torch.add(left, right, out=total)
            best = max(best, TRIAD_BYTES / (time.perf_counter() - start))
        return best
    finally:
        torch.set_num_threads(before)
