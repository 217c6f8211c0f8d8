"""In which order ``auto`` asks, by what was measured.

On the CPU the native kernels beat torch's loop of one call after another for every cell, dtype
and size that was tried. The one rival is oneDNN's LSTM, which torch takes for dense float32 and
bfloat16 input: there the order follows a table.

On a GPU nothing was measured. ``torch`` stays first for what cuDNN takes without waiting for the
device; for the rest ``cuda``, then ``triton``, come before the scratch loop.
"""

from __future__ import annotations

import itertools
import math

import torch

from ..problem import Problem

# Time of torch over that of ``cpu``, forward + backward, float32, T = 20, I = H, two threads of a
# Xeon with AVX-512 (torch 2.14.1). None: not measured.
ONEDNN_LSTM_BATCHES = (1, 4, 16, 64, 256, 1024)
ONEDNN_LSTM: dict[int, tuple[float | None, ...]] = {
    32: (1.04, 1.10, 1.06, 1.07, 1.08, 1.09),
    64: (1.12, 1.13, 1.06, 0.99, 0.91, 1.14),
    128: (1.16, 1.11, 1.03, 0.99, 0.91, 1.05),
    256: (1.42, 1.25, 1.09, 0.97, 1.10, 1.03),
    512: (1.59, 1.47, 1.18, 1.17, 1.13, None),
    1024: (1.29, 1.54, 1.38, 0.94, 1.03, None),
}
# Below, a vector of the native kernels is mostly padding; not measured. Nor may their rounding be
# torch's there: a gradient that is one number and nearly cancels has no larger one beside it.
FEWEST_UNITS = 4
MARGIN = 1.05  # what must be won to leave torch's kernel: a tie stays where it is


def order(problem: Problem) -> tuple[str, ...]:
    """Names of all backends, the one that is expected to be fastest first."""
    if problem.recorded:  # a trace of torch's own kernels needs no rnnfast where it is loaded
        return ("torch", "cpu", "cuda", "triton", "reference")
    if problem.device == "cuda" and problem.has_lengths:  # torch would read them on the host
        return ("cuda", "torch", "cpu", "triton", "reference")
    if problem.H < FEWEST_UNITS:
        return ("torch", "cpu", "cuda", "triton", "reference")
    if problem.device == "cpu" and not _onednn_wins(problem):
        return ("cpu", "torch", "cuda", "triton", "reference")
    return ("torch", "cpu", "cuda", "triton", "reference")


def _onednn_wins(problem: Problem) -> bool:
    if problem.cell != "lstm" or problem.has_lengths or problem.tracing:
        return False  # torch has its loop there; under a tracer its backward runs forward anew
    if problem.dtype == torch.bfloat16:
        return True
    return problem.dtype == torch.float32 and onednn_lstm_ratio(problem.H, problem.B) < MARGIN


def onednn_lstm_ratio(H: int, B: int) -> float:
    """The table at the nearest H, between its batch sizes on a logarithmic scale."""
    nearest = min(ONEDNN_LSTM, key=lambda h: abs(math.log(h / max(H, 1))))
    points = [
        (math.log(b), ratio)
        for b, ratio in zip(ONEDNN_LSTM_BATCHES, ONEDNN_LSTM[nearest], strict=False)
        if ratio is not None
    ]
    x = math.log(max(B, 1))
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]
