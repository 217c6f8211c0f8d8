"""The plan asks the driver, which may have no room for what the model likes best."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rnnfast
from rnnfast import _ext
from rnnfast.backends.cuda import Cuda
from rnnfast.backends.cuda import plan as cuda_plan
from rnnfast.problem import Options, Problem

SIZES = [(H, B) for H in (192, 384, 512, 768, 1024, 1536) for B in (1, 8, 16, 64, 256)]
PLENTY = 10**6
SMS = 132  # of an H100


def plan(H: int, B: int = 8, room: Any = None, **more: Any) -> tuple[str, str, list[int], str]:
    module: Any = _ext.cpu()
    if module is None:
        pytest.skip(f"needs the extension: {_ext.why_no_cpu()}")
    asked = {"backward": False, "cell": "lstm", "dtype": "bfloat16", "tf32": False, "T": 100}
    asked |= {"B": B, "H": H, "P": H, "directions": 1, "device": "H100", "room": room}
    return module.cuda_plan(**asked | more)


class Driver:
    """Answers, and remembers what it was asked."""

    def __init__(self, largest_cluster: int = 16, grid: int = PLENTY) -> None:
        self.largest_cluster, self.grid = largest_cluster, grid
        self.asked: list[tuple] = []

    def __call__(self, cell: str, strategy: str, math: str, choice: Any, *rest: Any) -> int:
        self.asked.append((cell, strategy, math, tuple(choice), *rest))
        if strategy == "grid":
            return self.grid
        return 120 if choice[1] <= self.largest_cluster else 0


def test_a_driver_with_room_changes_nothing() -> None:
    for H, B in SIZES:
        assert plan(H, B, Driver()) == plan(H, B)


def test_clusters_that_the_driver_refuses_are_not_chosen() -> None:
    unasked = [plan(H, B) for H, B in SIZES]
    assert any(name == "cluster" and choice[1] == 16 for name, _, choice, _ in unasked)
    changed = 0
    for (H, B), before in zip(SIZES, unasked, strict=True):
        name, _, choice, text = plan(H, B, Driver(largest_cluster=8))
        assert name != "cluster" or choice[1] <= 8
        if (name, choice) != (before[0], before[2]):
            changed += 1
            assert "the driver has no room for" in text
    assert changed


def test_a_grid_must_be_on_the_device_whole() -> None:
    for H, B in SIZES:
        name, _, choice, text = plan(H, B, Driver(largest_cluster=1, grid=40))
        assert name != "cluster"
        assert name != "grid" or choice[1] * choice[2] <= 40
        assert name != "stepwise" or "the driver has no room for" in text


def test_with_no_room_for_any_team_the_weights_pass_step_by_step() -> None:
    name, _, _, text = plan(1024, 8, Driver(largest_cluster=1, grid=0))
    assert name == "stepwise"
    assert "the driver has no room for" in text


@pytest.mark.parametrize("forced", ["cluster:blocks=16", "grid"])
def test_a_forced_plan_without_room_is_an_error(forced: str) -> None:
    with pytest.raises(ValueError, match=r"RNNFAST_PLAN asks for .* the driver has no room for"):
        plan(512, 8, Driver(largest_cluster=8, grid=0), forced=forced)


def test_an_error_of_the_driver_is_not_lost() -> None:
    def broken(*_: Any) -> int:
        raise RuntimeError("the driver says no")

    with pytest.raises(RuntimeError, match="the driver says no"):
        plan(512, 8, broken)


class Faked(Cuda):
    """The backend with a driver that is asked in place of the device's."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.numbers: list[int] = []

    @property
    def ops(self) -> Any:
        return self

    def cuda_room(self, *query: Any) -> int:
        self.asked.append(query)
        return 120

    def device_numbers(self, index: int) -> Any:
        self.numbers.append(index)
        return "H100"


def test_the_plan_is_for_the_device_of_the_tensors_and_asks_once() -> None:
    if _ext.cpu() is None:
        pytest.skip(f"needs the extension: {_ext.why_no_cpu()}")
    backend = Faked()
    sizes = (100, 8, 512, 512, 512)
    asked = Problem("lstm", "dense", "cuda", torch.bfloat16, *sizes, True, False, False, Options())
    for index in (1, 0, 1):
        for T in (100, 200):
            backend.plan("forward", asked._replace(T=T, device_index=index))
    assert set(backend.numbers) == {0, 1}
    assert {query[-1] for query in backend.asked} == {0, 1}
    assert len(set(backend.asked)) == len(backend.asked)


class Numbered(Faked):
    """An H100 whose numbers the module tells."""

    device_numbers = Cuda.device_numbers

    def cuda_room(self, *query: Any) -> int:
        return PLENTY

    def cuda_device(self, index: int) -> tuple[int, int, int, int, float]:
        return (90, SMS, 227 << 10, 64 << 10, 1.755)


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> Numbered:
    module: Any = _ext.cpu()
    if module is None:
        pytest.skip(f"needs the extension: {_ext.why_no_cpu()}")
    monkeypatch.setattr(cuda_plan, "module", lambda: module)
    return Numbered()


def test_multiprocessors_are_left_to_others(
    numbered: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test beside an all-reduce of tests/gpu/test_training_cuda.py."""
    used = {}
    for free in (0, 16, 60):
        monkeypatch.setenv("RNNFAST_FREE_SMS", str(free))
        for H in (768, 1024):
            sizes = (100, 64, H, H, H)
            asked = Problem(
                "lstm", "dense", "cuda", torch.bfloat16, *sizes, True, False, False, Options()
            )
            for direction in ("forward", "backward"):
                strategy, _, choice, _ = numbered.plan(direction, asked)
                assert strategy == "grid"
                used[free, H, direction] = choice[1] * choice[2]
                assert used[free, H, direction] <= SMS - free
    assert max(blocks for (free, *_), blocks in used.items() if free == 0) > SMS - 16


@pytest.mark.parametrize("free", ["some", "-1", str(10**6)])
def test_more_multiprocessors_than_there_are_can_t_be_left(
    numbered: Numbered, free: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNFAST_FREE_SMS", free)
    with pytest.raises(ValueError, match="a number below the device's 132 multiprocessors, not"):
        numbered.device_numbers(0)


def test_a_problem_knows_its_device() -> None:
    layer = rnnfast.LSTM(3, 5)
    (choice,) = rnnfast.explain(layer, torch.randn(4, 2, 3)).choices
    assert choice.problem.device_index == 0
