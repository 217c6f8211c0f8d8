"""In which order ``auto`` asks, by what was measured.

On the CPU the order is a question of who is faster in the table of ``measured``: this machine's own
where ``python -m rnnfast tune`` made one, else the one that was measured for its instruction set.

On a GPU the kernels that were qualified there (``qualified``) come first where they were faster.
Without that ``torch`` stays first; what failed there comes last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..problem import Problem
from . import measured, qualified
from .torch_native import TorchNative, lstm_failure

TORCH_FIRST = ("torch", "cpu", "cuda", "triton", "reference")
# For cells of one's own on a GPU, where neither was measured: Triton needs no nvcc, and replays the
# launches of its steps as a graph.
TRITON_FIRST = ("torch", "cpu", "triton", "cuda", "reference")
RECORDED = ("torch", "reference", "cpu", "cuda", "triton")
CPU_FIRST = ("cpu", "torch", "cuda", "triton", "reference")

# Below, a vector of the native kernels is mostly padding; not measured. Nor may their rounding be
# torch's there: a gradient that is one number and nearly cancels has no larger one beside it.
FEWEST_UNITS = 4
# By dot products of bfloat16 our LSTM trains faster than oneDNN's for all sizes that were measured;
# in inference it is ahead for so many sequences, up to 8 % behind for more (an EPYC, two threads).
FEW_SEQUENCES = 8
MARGIN = 1.05  # what must be won to leave torch's kernel: a tie stays where it is


class Order(NamedTuple):
    """Names of all backends, the one that is expected to be fastest first, and why so."""

    names: tuple[str, ...]
    reason: str


def order(problem: Problem) -> Order:
    """The order in which ``auto`` asks about ``problem``."""
    if problem.recorded:
        return Order(RECORDED, "a trace of torch's own calls loads without rnnfast")
    if problem.device == "cuda":
        return _on_gpu(problem)
    if problem.device != "cpu":
        return Order(TORCH_FIRST, "rnnfast has no kernels for this device")
    return _on_cpu(problem)


def _on_gpu(problem: Problem) -> Order:
    cell, training = problem.cell, problem.options.training
    if problem.spec.own:
        return Order(TRITON_FIRST, "Triton's kernels need no nvcc")
    found = qualified.standings(problem.device_index, cell, problem.dtype, training)
    if found is None:
        return Order(TORCH_FIRST, qualified.unknown())
    failed = [s.backend for s in found if s.fault is not None]
    passed = [s.backend for s in found if s.passed]
    reasons = [f"{s.backend} failed when qualified ({s.fault})" for s in found if s.fault]
    reasons += [f"{s.backend} was not tried" for s in found if not (s.passed or s.fault)]
    if TorchNative().why_not(problem) is not None:
        ahead = passed
    elif problem.has_lengths:
        ahead = passed
        reasons.append("torch would read the lengths on the host")
    else:
        ratios = {s.backend: _expected_on_gpu(s, problem) for s in found if s.passed}
        ahead = sorted((b for b in passed if ratios[b] >= MARGIN), key=lambda b: -ratios[b])
        reasons += [f"torch's time is expected to be {ratios[b]:.2f} of {b}'s" for b in passed]
    behind = [s.backend for s in found if s.backend not in (*ahead, *failed)]
    names = (*ahead, "torch", "cpu", *behind, "reference", *failed)
    return Order(names, "; ".join(reasons) or "found right here")


def _expected_on_gpu(standing: qualified.Standing, problem: Problem) -> float:
    """torch's time over the backend's. A tracer's sizes may be symbols: there the least of all."""
    if problem.tracing:
        return standing.least
    known = qualified.of(problem.device_index)
    return 0.0 if known is None else known.ratio(standing.backend, problem)


def _on_cpu(problem: Problem) -> Order:
    if problem.H < FEWEST_UNITS:
        return Order(TORCH_FIRST, "too few units for a vector")
    if problem.tracing:
        return Order(CPU_FIRST, "torch's backward would run forward anew under a compiler")
    if (refusal := TorchNative().why_not(problem)) is not None:
        return Order(CPU_FIRST, refusal)
    if problem.has_lengths:
        return Order(CPU_FIRST, "torch would sort and pack the sequences")
    if problem.kind == "tokens":
        return Order(CPU_FIRST, "torch would multiply a one-hot matrix")
    if problem.cell == "lstm" and problem.dtype == torch.bfloat16 and _onednn_has_bfloat16(problem):
        if measured.has_dots() and (problem.options.training or problem.B <= FEW_SEQUENCES):
            return Order(CPU_FIRST, "cpu has dot products of bfloat16")
        return Order(TORCH_FIRST, "oneDNN has an LSTM in bfloat16")
    ratio, table = expected_ratio(problem)
    names = CPU_FIRST if ratio >= MARGIN else TORCH_FIRST
    return Order(names, f"torch's time is expected to be {ratio:.2f} of cpu's ({table.machine})")


def expected_ratio(problem: Problem) -> tuple[float, measured.Table]:
    """torch's time over that of the backend ``cpu``, and the table that says so."""
    cell, training = _measured_cell(problem), problem.options.training
    tables = measured.shipped(measured.isa())
    own = measured.local().table
    for table in [own, *tables] if own is not None else tables:
        ratio = table.ratio(cell, training, problem.T, problem.B, problem.H)
        if ratio is not None:
            return ratio, table
    raise AssertionError("the shipped tables have every cell and mode")


def _measured_cell(problem: Problem) -> str:
    """The cell whose points tell: the LSTM's are oneDNN's in float32; all that torch does by ATen's
    loop is like its GRU."""
    if problem.cell == "lstm" and problem.dtype == torch.float32:
        return "lstm"
    return "rnn_tanh" if problem.cell.startswith("rnn") else "gru"


def _onednn_has_bfloat16(problem: Problem) -> bool:
    """oneDNN takes it where it takes an autocast one, which has no other way."""
    return lstm_failure(torch.float32, torch.bfloat16, problem.options.training) is None
