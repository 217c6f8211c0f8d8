"""The backend ``cuda`` on two devices of one process, for which devices.cpp stands in: each launch
is on its tensors' device and the stream that is current there, whatever device is the current one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from . import devices_child
from .devices_child import CALLS, GRAPHS, STEPS, STRATEGIES, WHOLE_STEPS, Noted
from .stand_in import stand_in

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What the child printed."""
    library, environment = stand_in(tmp_path_factory.mktemp("devices"))
    words = [sys.executable, "-m", devices_child.__name__, str(library)]
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


DEVICES = pytest.mark.parametrize("device", [0, 1])


def noted(found: Mapping[str, Any], name: str) -> list[Noted]:
    done = found["noted"][name]
    assert isinstance(done, list), done
    return [Noted(*one) for one in done]


def kernels(of: list[Noted]) -> list[Noted]:
    return [one for one in of if "rnnfast" in one.what]


@DEVICES
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_launches_are_on_the_tensors_device(
    found: Mapping[str, Any], device: int, strategy: str
) -> None:
    if device not in STRATEGIES[strategy]:
        pytest.skip("that device has no clusters")
    done = noted(found, f"{device} {strategy}")
    assert len(kernels(done)) >= 2
    assert {one.what for one in done} > {one.what for one in kernels(done)}  # products too
    assert {(one.device, one.stream) for one in done} == {(device, "-")}


@DEVICES
def test_launches_are_on_the_stream_of_the_tensors_device(
    found: Mapping[str, Any], device: int
) -> None:
    done = noted(found, f"{device} side stream")
    assert len(kernels(done)) == 2
    assert {(one.device, one.stream) for one in done} == {(device, str(device))}


@DEVICES
def test_cells_of_ones_own_are_on_the_stream_of_the_tensors_device(
    found: Mapping[str, Any], device: int
) -> None:
    """By a library that nvcc made for that device."""
    done = kernels(noted(found, f"{device} cell of one's own"))
    assert len(done) == 3 * STEPS + 2  # 1 and 2 a step, and the states at the end
    assert {(one.device, one.stream) for one in done} == {(device, str(device))}


@DEVICES
def test_pipelined_layers_have_streams_of_their_device(
    found: Mapping[str, Any], device: int
) -> None:
    done = noted(found, f"{device} pipelined")
    assert len(kernels(done)) == 2 * 2 * 3  # passes, layers, parts
    assert {(one.device, one.stream) for one in kernels(done)} == {(device, str(device))}
    assert {one.device for one in done} == {device}


@DEVICES
def test_clipping_is_on_the_gradients_device(found: Mapping[str, Any], device: int) -> None:
    done = kernels(noted(found, f"{device} clip"))
    assert len(done) == 2
    assert {(one.device, one.stream) for one in done} == {(device, "-")}


@DEVICES
def test_graphs_give_their_tables_back(found: Mapping[str, Any], device: int) -> None:
    done = noted(found, f"{device} clip in graphs")
    captured = kernels(done)[: 2 * GRAPHS]
    assert {(one.device, one.stream) for one in captured} == {(device, str(device))}
    pinned, unpinned = (sum(one.what == name for one in done) for name in ("pinned", "unpinned"))
    assert pinned >= 2 * GRAPHS
    assert pinned - unpinned <= 2


@pytest.mark.parametrize("strategy", WHOLE_STEPS)
def test_a_whole_step_can_be_captured(found: Mapping[str, Any], strategy: str) -> None:
    """The twin of the test of tests/gpu/test_training_cuda.py: nothing waits for the device, and
    every launch is on the stream that is captured."""
    done = kernels(noted(found, f"a whole step in a graph: {strategy}"))
    assert {(one.device, one.stream) for one in done} == {(0, "0")}
    names = [one.what for one in done]
    assert names == 4 * names[: len(names) // 4]  # three before, and the one that is captured
    assert names


def test_a_wait_in_a_graph_is_seen(found: Mapping[str, Any]) -> None:
    assert "operation not permitted when stream is capturing" in found["noted"]["a wait in a graph"]


def test_threads_with_sizes_and_devices_of_their_own(found: Mapping[str, Any]) -> None:
    done = kernels(noted(found, "threads"))
    assert {(one.device, one.stream) for one in done} == {(0, "-"), (1, "-")}
    for device in (0, 1):
        mine = [one for one in done if one.tag == device]
        assert {one.device for one in mine} == {device}
        assert len(mine) == 2 * 2 * CALLS  # passes, sizes
        assert {one.shared > 48 * 1024 for one in mine} == {True, False}


def test_a_plan_is_for_the_tensors_device(found: Mapping[str, Any]) -> None:
    assert "cluster" in found["plans"][0]
    assert "cluster" not in found["plans"][1]
