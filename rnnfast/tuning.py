"""``tune``: measures on this machine who computes a call fastest, for ``auto`` to know.

``tune(layer, x)`` measures one call; ``tune_table`` (``python -m rnnfast tune``) makes a table for
all. Both are kept in a file of the cache folder that is this machine's, these versions' and this
number of threads'.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import modules
from .backends import measured, registry
from .backends.measured import Point
from .backends.registry import use_backend
from .explain import described
from .problem import Stack
from .recurrent import RecurrentLayer
from .selection import call_key, problems_of

SECONDS = 1.0  # for one call, at most, but for one that takes longer itself
SHORTEST = 2e-3  # seconds: calls that take less are timed several at once
FEWEST_SAMPLES = 3

Call = Callable[[], Any]


@dataclass(frozen=True)
class Tuning:
    """What ``tune`` found for one call, with or without gradients.

    Attributes:
        call: which call, as a line of text.
        seconds: the median time of a call by each backend that takes it.
        fastest: the backend that ``auto`` takes for this call from now on.
        file: where that is kept.
    """

    call: str
    seconds: dict[str, float]
    fastest: str
    file: Path

    def __str__(self) -> str:
        lines = [self.call]
        for name, seconds in sorted(self.seconds.items(), key=lambda item: item[1]):
            mark = "  <- auto" if name == self.fastest else ""
            lines.append(f"  {name:10}{seconds * 1e6:12.1f} us{mark}")
        return "\n".join(lines)


def tune(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_all_states: bool = False,
    seconds: float = SECONDS,
) -> list[Tuning]:
    """Measures ``layer(input, …)`` on every backend that takes it, and has ``auto`` remember the
    fastest for calls of these sizes and options.

    Without gradients, and where they are enabled and the layer or input wants some, forward with
    backward too. The layer's weights and gradients are left as they are.

    Args:
        layer: a layer of rnnfast; the others are its own arguments.
        seconds: for each of the two, at most (a longer call is made once by each backend).

    Returns:
        A :class:`Tuning` for each of the two; print it.

    Raises:
        TypeError: ``layer`` is not a layer of rnnfast. What the layer raises for a bad call.
    """
    options = {"lengths": lengths, "resets": resets, "return_all_states": return_all_states}
    described(layer, input, lengths, resets, return_all_states)  # its TypeError first

    def forward() -> Tensor:
        y = layer(input, **{k: v for k, v in options.items() if v is not None and v is not False})
        return y[0].data if isinstance(y[0], PackedSequence) else y[0]

    found = []
    data = input.data if isinstance(input, PackedSequence) else input
    wanted = [t for t in (data, *layer.parameters()) if t.requires_grad]
    for training in [True, False] if wanted and torch.is_grad_enabled() else [False]:
        with torch.set_grad_enabled(training):
            stack, first = described(layer, input, lengths, resets, return_all_states)
            call = _with_backward(forward, wanted) if training else forward
            names = _candidates(stack, first)
            times = {n: statistics.median(t) for n, t in measure(call, names, seconds).items()}
        found.append(_remember_call(call_key(first, *_counts(stack)), times))
    return found


def _counts(stack: Stack) -> tuple[int, int]:
    return stack.num_layers, stack.directions


def _with_backward(forward: Callable[[], Tensor], wanted: list[Tensor]) -> Call:
    def call() -> None:
        y = forward()
        torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return call


def _candidates(stack: Stack, first: Any) -> list[str]:
    """Who takes the call; the scratch loop only where nobody else does."""
    asked = problems_of(first, *_counts(stack))
    taking = [
        name
        for name, backend in registry.BACKENDS.items()
        if all(registry.refusal(backend, problem) is None for problem in asked)
    ]
    return [name for name in taking if name != "reference"] or taking


def _remember_call(key: str, times: dict[str, float]) -> Tuning:
    fastest = min(times, key=times.__getitem__)
    entry = {"backend": fastest, "us": {n: round(t * 1e6, 2) for n, t in times.items()}}
    file = measured.remember(lambda facts: {**facts, "calls": {**facts["calls"], key: entry}})
    return Tuning(key, times, fastest, file)


# --- timing --------------------------------------------------------------------------------------


def measure(call: Call, names: list[str], seconds: float) -> dict[str, list[float]]:
    """Seconds of a call by each of these backends, in turn, until ``seconds`` are over."""
    deadline = time.perf_counter() + seconds
    samples: dict[str, list[float]] = {name: [] for name in names}
    repeats: dict[str, int] = {}
    for name in names:  # the first call also allocates, compiles and chooses
        first = _timed(call, name, 1)
        again = _timed(call, name, 1) if time.perf_counter() + first < deadline else first
        repeats[name] = max(1, round(SHORTEST / max(again, 1e-9)))
        samples[name].append(again)
    turn = 0
    while len(names) > 1 and time.perf_counter() < deadline:
        for name in names if turn % 2 else names[::-1]:
            samples[name].append(_timed(call, name, repeats[name]))
        turn += 1
    if turn >= FEWEST_SAMPLES:  # the warm-up was for nothing but that
        samples = {name: times[1:] for name, times in samples.items()}
    return samples


def _timed(call: Call, name: str, repeats: int) -> float:
    with use_backend(name):
        if repeats > 1:
            call()  # after which the layer takes the short way of a call like the one before
        _wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        _wait()
        return (time.perf_counter() - start) / repeats


def _wait() -> None:
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):  # the call's device need not be the current
            torch.cuda.synchronize(index)


# --- the table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """The sizes of a table, and how long each may take."""

    T: tuple[int, ...]
    B: tuple[int, ...]
    H: tuple[int, ...]
    seconds: float

    def cases(self) -> Iterator[tuple[str, bool, int, int, int]]:
        """(cell, training, T, B, H), without those that would take too long."""
        for cell in measured.CELLS:
            for training in (False, True):
                for T in self.T:
                    for B in self.B:
                        for H in self.H:
                            if _flops(cell, training, T, B, H) < MOST_FLOPS:
                                yield cell, training, T, B, H


MOST_FLOPS = 2e10  # some 0.2 s a call on two cores
FULL = Grid((1, 5, 20, 100), (1, 8, 32, 128, 1024), (32, 64, 128, 256, 512, 1024), SECONDS)
QUICK = Grid((1, 40), (1, 32), (64, 256), 0.5)
_LAYERS: dict[str, Callable[..., RecurrentLayer]] = {
    "lstm": modules.LSTM,
    "gru": modules.GRU,
    "rnn_tanh": modules.RNN,
}


def _flops(cell: str, training: bool, T: int, B: int, H: int) -> float:
    gates = {"lstm": 4, "gru": 3, "rnn_tanh": 1}[cell]
    return 4.0 * T * B * gates * H * H * (3 if training else 1)


def tune_table(grid: Grid, report: Callable[[Point], None] = lambda point: None) -> Path:
    """Measures torch's kernels and ``cpu`` at the sizes of ``grid``, in place of what the table of
    this machine had; each point is kept as soon as it is there.

    Raises RuntimeError where the backend ``cpu`` is not usable, so that there is nothing to choose.
    """
    missing = registry.BACKENDS["cpu"].unusable()
    if missing is not None:
        raise RuntimeError(f"there is nothing to choose between: cpu: {missing}")
    file = measured.remember(lambda facts: {**facts, "points": []})
    for case in grid.cases():
        point = measure_point(*case, grid.seconds)
        measured.remember(lambda facts, p=point: {**facts, "points": [*facts["points"], p]})  # type: ignore[misc]
        report(point)
    return file


def measure_point(cell: str, training: bool, T: int, B: int, H: int, seconds: float) -> Point:
    """One point of a table: one layer, one direction, float32, I = H."""
    layer = _LAYERS[cell](H, H, device="cpu", dtype=torch.float32)
    x = torch.randn(T, B, H, device="cpu", dtype=torch.float32, requires_grad=training)
    wanted = [x, *layer.parameters()]

    def forward() -> Tensor:
        y: Tensor = layer(x)[0]
        return y

    with torch.set_grad_enabled(training):
        call = _with_backward(forward, wanted) if training else forward
        samples = measure(call, ["torch", "cpu"], seconds)
    us = {name: round(statistics.median(times) * 1e6, 2) for name, times in samples.items()}
    return Point(cell, training, T, B, H, us["torch"], us["cpu"])
