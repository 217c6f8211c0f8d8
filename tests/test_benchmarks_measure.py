"""How the benchmark suite takes its times: the order of the pairs, the clock, the collector."""

from __future__ import annotations

import gc
import itertools

import pytest

from benchmarks import measure


class FakeWork:
    """Takes `seconds()` of a fake clock and writes down when it was prepared and called."""

    def __init__(self, name, world, seconds):
        self.name, self.world, self.seconds = name, world, seconds

    def prepare(self):
        self.world.log.append(f"prepare {self.name}")

    def __call__(self):
        self.world.log.append(self.name)
        self.world.now += self.seconds()


class World:
    def __init__(self):
        self.now, self.log = 0.0, []

    def clock(self):
        return self.now

    def timer(self, work):
        start = self.now
        work()
        return self.now - start

    def alternate(self, a, b, budget):
        return measure.alternate(a, b, budget, timer=self.timer, clock=self.clock)


def test_alternate_swaps_the_order_in_every_pair():
    world = World()
    a, b = FakeWork("A", world, lambda: 2.0), FakeWork("B", world, lambda: 1.0)
    pairs = world.alternate(a, b, budget=21.0)  # spent in the middle of the swaps
    assert "".join(entry for entry in world.log if len(entry) == 1) == "ABAB" + "ABBA" * 3
    assert world.log[::2] == [f"prepare {name}" for name in world.log[1::2]]
    assert pairs == measure.Pairs((2.0,) * 6, (1.0,) * 6)
    assert pairs.ratio.median == 2.0
    assert pairs.difference.median == -1.0


def test_alternate_gives_a_slow_case_its_minimum_of_pairs():
    world = World()
    a, b = FakeWork("A", world, lambda: 50.0), FakeWork("B", world, lambda: 50.0)
    assert len(world.alternate(a, b, budget=1.0).a) == measure.MIN_PAIRS


def test_ratio_survives_a_machine_that_slows_down():
    world = World()
    slowness = itertools.count(1)
    a = FakeWork("A", world, lambda: 3.0 * (1 + next(slowness) / 1000))
    b = FakeWork("B", world, lambda: 1.0 * (1 + next(slowness) / 1000))
    pairs = world.alternate(a, b, budget=2000.0)
    assert len(pairs.a) > 100
    assert pairs.ratio.median == pytest.approx(3.0, rel=1e-3)


def test_collector_is_off_while_timing_and_on_again_after_an_error():
    world, seen = World(), []

    def fail():
        seen.append(gc.isenabled())
        if len(seen) > measure.WARMUP_CALLS:
            raise RuntimeError("planted")
        return 1.0

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="planted"):
        world.alternate(FakeWork("A", world, fail), FakeWork("B", world, lambda: 1.0), 1.0)
    assert seen == [True] * measure.WARMUP_CALLS + [False]
    assert gc.isenabled()


def test_cpu_timer_reads_seconds(monkeypatch):
    ticks = iter([1_000_000, 4_500_000])
    monkeypatch.setattr(measure.time, "perf_counter_ns", lambda: next(ticks))
    assert measure.cpu_timer(lambda: None) == pytest.approx(0.0035)


def test_summary():
    summary = measure.Summary.of([float(value) for value in range(99, -1, -1)])
    assert summary == measure.Summary(49.5, 24.75, 74.25, 40.0, 59.0, 0.0)
    few = measure.Summary.of([3.0, 1.0, 2.0, 4.0])
    assert (few.low, few.high) == (1.0, 4.0)
    with pytest.raises(ValueError, match="two values"):
        measure.Summary.of([1.0])
