"""Every entry with its tensors on device 1 and device 0 the current one: results as on the CPU, bit
by bit, and every launch on the tensors' device and its current stream (tests/fake_cuda.py)."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnfast.triton import clip_lists, device, graphs, tune
from rnnfast.triton.plan import STRATEGY

from ...cases import Case
from ...fake_cuda import Fake
from ..checks import (
    OF_EACH_WAY,
    STRATEGIES,
    Placed,
    assert_same,
    check_a_callers_graph,
    check_graphs,
    check_lists,
    check_lists_that_are_not_taken,
    check_odd_addresses,
    results,
)

pytestmark = pytest.mark.usefixtures("poisoned")
CASE = Case("gru", T=3, B=3, I=3, H=5, lengths=True, resets=True, all_states=True)


def on(cuda: Fake, index: int) -> Placed:
    return lambda tensor: cuda.place(tensor, index)


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(STRATEGY, request.param)
    return str(request.param)


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRATEGY, "stepwise")


@pytest.fixture(autouse=True)
def _graphs_of_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since the interpreter takes long for each launch."""
    monkeypatch.setattr(graphs, "FEWEST_STEPS", 2)


@pytest.mark.parametrize("cell", OF_EACH_WAY)
@pytest.mark.usefixtures("strategy")
def test_both_passes(cuda: Fake, cell: str) -> None:
    case = replace(CASE, cell=cell, reverse=True)
    side = torch.cuda.Stream(torch.device("cuda", 1))
    expected = results(case)
    with torch.cuda.stream(side), torch.cuda.device(0):
        assert_same(results(case, on(cuda, 1)), expected)
        assert torch.cuda.current_device() == 0
    assert {launched[1:] for launched in cuda.log} == {(1, side.cuda_stream, "run")}


@pytest.mark.usefixtures("strategy")
def test_the_device_is_entered_once_a_pass(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once to ask whether its stream is captured. Entering costs as much as a launch."""
    monkeypatch.setenv(graphs.SWITCH, "0")
    devices: list[torch.device] = []
    entered = device.entered
    monkeypatch.setattr(device, "entered", lambda d: devices.append(d) or entered(d))
    results(CASE, on(cuda, 1))
    assert devices == [torch.device("cuda", 1)] * 4
    assert len(cuda.log) in (2, 2 * CASE.T + 1)


@pytest.mark.parametrize("cell", OF_EACH_WAY)
@pytest.mark.usefixtures("stepwise")
def test_stepwise_graphs(cuda: Fake, cell: str) -> None:
    side = torch.cuda.Stream(torch.device("cuda", 1))
    ways: list[set[str]] = []

    def seen() -> None:
        ways.append({launched.how for launched in cuda.log})
        assert {launched.device for launched in cuda.log} == {1}
        ran = [launched for launched in cuda.log if launched.how != "recorded"]
        assert {launched.stream for launched in ran} == {side.cuda_stream}
        cuda.log.clear()

    with torch.cuda.stream(side), torch.cuda.device(0):
        check_graphs(cell, on(cuda, 1), seen)
    assert ways == [{"run"}, {"run", "recorded", "replayed"}, {"run", "replayed"}]
    assert len(cuda.graphs) == 2  # forward, backward


@pytest.mark.usefixtures("stepwise")
def test_two_devices_by_turns(cuda: Fake) -> None:
    for seed in range(3):
        case = replace(CASE, seed=seed)
        expected = results(case)
        for index in (0, 1):
            cuda.log.clear()
            assert_same(results(case, on(cuda, index)), expected)
            assert {launched.device for launched in cuda.log} == {index}
            assert ("replayed" in {launched.how for launched in cuda.log}) == (seed > 0)
    assert sorted(graph.stream.device.index for graph in cuda.graphs) == [0, 0, 1, 1]


@pytest.mark.usefixtures("stepwise")
def test_addresses_that_are_aligned_otherwise_than_a_graphs(cuda: Fake) -> None:
    check_odd_addresses(on(cuda, 1))


@pytest.mark.usefixtures("stepwise")
def test_a_failing_capture(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = cuda.launch

    def failing(*arguments: Any) -> None:
        if cuda.stream().capture is not None and len(cuda.stream().capture.steps) > 2:
            raise MemoryError("half-way")
        launch(*arguments)

    case = replace(CASE, seed=1)
    expected = results(case)
    results(CASE, on(cuda, 1))
    monkeypatch.setattr(cuda, "launch", failing)
    with pytest.raises(MemoryError, match="half-way"):
        results(case, on(cuda, 1))
    assert len(graphs.GRAPHS._kept) == 1  # that of backward, which has been seen once
    monkeypatch.setattr(cuda, "launch", launch)
    for _ in range(3):
        assert_same(results(case, on(cuda, 1)), expected)


def test_a_graph_of_the_callers(cuda: Fake, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    monkeypatch.delenv(tune.SWITCH)
    check_a_callers_graph(strategy, on(cuda, 1))
    assert len(cuda.graphs) == 1


def test_tuning(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch takes a millisecond on the stream that it goes to."""
    monkeypatch.delenv(tune.SWITCH)
    monkeypatch.setenv(graphs.SWITCH, "0")
    times: list[float] = []

    def noted(*arguments: Any) -> float:
        times.append(milliseconds(*arguments))
        return times[-1]

    milliseconds = device.milliseconds
    monkeypatch.setattr("rnnfast.triton.run.milliseconds", noted)
    assert_same(results(CASE, on(cuda, 1)), results(CASE))
    assert len(times) == 6  # resident and two stepwise tilings, forward and backward
    assert min(times) == 1.0  # resident: one launch
    lines = tune.cache_file().read_text()
    assert lines.count("second |") == 2
    assert "first" not in lines
    assert {launched.device for launched in cuda.log} == {1}


def test_facts_of_another_device_than_the_current(
    cuda: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first could keep resident, the second can't: an error, never a launch."""
    monkeypatch.setenv(STRATEGY, "resident")
    cuda.devices = (cuda.devices[0], ("old", 75, 40))
    with pytest.raises(ValueError, match=r"triton on cuda:1: .* none fits this device"):
        results(CASE, on(cuda, 1))
    assert cuda.log == []


@pytest.mark.usefixtures("strategy")
@pytest.mark.parametrize(("T", "B"), [(1, 3), (8, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("cell", OF_EACH_WAY)
def test_one_step_and_no_sequence(
    cuda: Fake, monkeypatch: pytest.MonkeyPatch, cell: str, T: int, B: int
) -> None:
    if B == 0:  # nor is anything timed
        monkeypatch.delenv(tune.SWITCH)
    for seed in range(2):
        case = replace(CASE, cell=cell, T=T, B=B, seed=seed, lengths=False, resets=False)
        assert_same(results(case, on(cuda, 1)), results(case))
    assert cuda.graphs == []
    assert (cuda.log == []) == (B == 0)
    assert not tune.cache_file().exists()


@pytest.mark.usefixtures("stepwise")
def test_threads_with_sizes_of_their_own(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one kernel at a time."""
    monkeypatch.delenv(tune.SWITCH)
    at_work, run = threading.Lock(), cuda._run

    def alone(*arguments: Any) -> None:
        with at_work:
            run(*arguments)

    monkeypatch.setattr(cuda, "_run", alone)
    tasks = [(replace(CASE, B=B, H=H), index) for B, H, index in ((2, 5, 1), (3, 4, 1))]
    expected = [results(case) for case, _ in tasks]
    errors: list[BaseException] = []
    begin = threading.Barrier(len(tasks))

    def task(case: Case, index: int, right: dict[str, Tensor]) -> None:
        try:
            with cuda.running():
                begin.wait()
                for _ in range(2):
                    assert_same(results(case, on(cuda, index)), right)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=task, args=(*one, right))
        for one, right in zip(tasks, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(cuda.graphs) == 4


# --- lists of tensors ----------------------------------------------------------------------------


def test_lists(cuda: Fake) -> None:
    side = torch.cuda.Stream(torch.device("cuda", 1))
    with torch.cuda.stream(side), torch.cuda.device(0):
        check_lists(on(cuda, 1))
    assert [launched[1:] for launched in cuda.log] == [(1, side.cuda_stream, "run")] * 4


def test_lists_of_nothing(cuda: Fake) -> None:
    kernels, empty = clip_lists.TritonKernels(), [cuda.place(torch.ones(0, 3))]
    norm = kernels.norm(empty, 2.0, True, max_norm=1.0)
    assert norm is not None
    assert norm.item() == 0
    assert kernels.scale(empty, norm, 1.0)
    assert kernels.clamp(empty, 1.0)
    assert {launched.device for launched in cuda.log} == {1}


def test_lists_that_are_not_taken(cuda: Fake) -> None:
    check_lists_that_are_not_taken(on(cuda, 1))
    lists = [cuda.place(torch.ones(3), index) for index in (0, 1)]
    assert clip_lists.TritonKernels().norm(lists, 2.0, True) is None
    assert cuda.log == []
