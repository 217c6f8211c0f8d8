"""Timing two pieces of work against each other in one process.

Machines drift: clocks, caches and neighbours change within seconds. So A and B alternate, the
order inside a pair swaps from pair to pair, and what is reported is the median of the ratios of
pairs, whose two halves ran moments apart.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

WARMUP_SHARE = 0.1  # of the budget, spent before the first timed pair
WARMUP_CALLS = 2  # at least, of each side
MIN_PAIRS = 4


class Work(Protocol):
    """What is timed: `prepare()` runs before every call and is not timed."""

    def prepare(self) -> None: ...

    def __call__(self) -> object: ...


Timer = Callable[[Work], float]  # seconds that one call took


def cpu_timer(work: Work) -> float:
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) * 1e-9


def cuda_timer(work: Work) -> float:
    """By events on the current stream of an idle device, so launch latency counts."""
    import torch  # here, so that what reads results need not have it

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def timer_for(device: str) -> Timer:
    return cuda_timer if device.startswith("cuda") else cpu_timer


@dataclass(frozen=True)
class Summary:
    """Of a sample: its median, quartiles, smallest value, and where the median itself may lie.

    `low`..`high` are order statistics that enclose the true median 95 times in 100 for independent
    samples of six or more; for fewer they are the whole range and enclose it less often.
    """

    median: float
    q1: float
    q3: float
    low: float
    high: float
    smallest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Raises ValueError for fewer than two values."""
        if len(values) < 2:
            raise ValueError(f"a summary needs two values or more, got {len(values)}")
        ordered = sorted(values)
        q1, median, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
        cut = max(0, math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2))
        return cls(median, q1, q3, ordered[cut], ordered[-1 - cut], ordered[0])


@dataclass(frozen=True)
class Pairs:
    """Seconds of each call, pair by pair."""

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def ratio(self) -> Summary:
        """a / b: above 1, b is the faster one."""
        return Summary.of([a / b for a, b in zip(self.a, self.b, strict=True)])

    @property
    def difference(self) -> Summary:
        """b - a in seconds: what b costs on top of a."""
        return Summary.of([b - a for a, b in zip(self.a, self.b, strict=True)])


def alternate(
    a: Work,
    b: Work,
    budget: float,
    *,
    timer: Timer = cpu_timer,
    clock: Callable[[], float] = time.perf_counter,
) -> Pairs:
    """Times A B, B A, A B, … until `budget` seconds are spent, warm-up included.

    It stops after an even number of pairs, so that each side was first equally often, and not
    before MIN_PAIRS: slow calls overrun the budget.
    """
    start = clock()
    _warm_up(a, b, budget * WARMUP_SHARE, timer, clock)
    times_a: list[float] = []
    times_b: list[float] = []
    sides = ((a, times_a), (b, times_b))
    with _no_collector():
        while True:
            balanced = len(times_a) >= MIN_PAIRS and len(times_a) % 2 == 0
            if balanced and clock() - start >= budget:
                break
            order = sides if len(times_a) % 2 == 0 else sides[::-1]
            for work, times in order:
                work.prepare()
                times.append(timer(work))
    return Pairs(tuple(times_a), tuple(times_b))


def _warm_up(a: Work, b: Work, seconds: float, timer: Timer, clock: Callable[[], float]) -> None:
    """By the timer, which waits for the device: else a thousand calls queue up there."""
    start = clock()
    calls = 0
    while calls < WARMUP_CALLS or clock() - start < seconds:
        for work in (a, b):
            work.prepare()
            timer(work)
        calls += 1


@contextmanager
def _no_collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
