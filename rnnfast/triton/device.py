"""The one door to a tensor's device: launches, captures, times, and what a stream is asked.

Triton launches on the current device and its current stream, wherever the arguments lie; torch
captures, records events and asks about streams there too. So all of that happens here, under the
device of the tensors: nothing else in this folder mentions torch.cuda or launches a kernel.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .plan import INTERPRETER, Device

Work = Callable[[], None]


def facts_of(device: torch.device) -> Device:
    """The GPU that ``device`` is; INTERPRETER on the CPU, and where torch sees no GPU."""
    if device.type == "cpu" or not torch.cuda.is_available():
        return INTERPRETER
    facts = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return Device(facts.name, facts.gcnArchName.split(":")[0], 64 << 10)
    arch = f"{facts.major}{facts.minor}"
    shared: int = facts.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return Device(facts.name, arch, shared)


def processors(device: torch.device) -> int:
    """How many multiprocessors it has; the CPU, for the interpreter: one."""
    if device.type == "cpu":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def device_of(values: Iterable[Any]) -> torch.device:
    """The device of those of ``values`` that are tensors. ValueError where they share none."""
    found = {value.device for value in values if isinstance(value, Tensor)}
    if len(found) != 1:
        raise ValueError(f"tensors on one device are wanted, got: {sorted(map(str, found))}")
    return found.pop()


def entered(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes it the current device."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)


class Door:
    """To one device, and open within its block: kernels are launched there and then."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._entered, self._open = device, entered(device), False

    def __enter__(self) -> Door:
        self._entered.__enter__()
        self._open = True
        return self

    def __exit__(self, *error: Any) -> None:
        self._open = False
        self._entered.__exit__(*error)

    def launcher(self, kernel: Any, grid: tuple[int, ...], **given: Any) -> Callable[..., None]:
        """What launches ``kernel``; the rest of its arguments is for each call. ValueError where
        the tensors of ``given`` lie elsewhere."""
        if (device := device_of(given.values())) != self._device:
            raise ValueError(f"tensors on {self._device} are wanted, got: {device}")
        launch = functools.partial(kernel[grid], **given)

        def call(**rest: Any) -> None:
            if not self._open:
                raise RuntimeError(f"a launch on {self._device} outside of its door's block")
            launch(**rest)

        return call


def stream_of(device: torch.device) -> int:
    """The handle of its current stream; 0 on the CPU."""
    return 0 if device.type == "cpu" else int(torch.cuda.current_stream(device).cuda_stream)


def capturing(device: torch.device) -> bool:
    """Whether somebody captures its current stream into a graph."""
    if device.type == "cpu":
        return False
    with entered(device):
        return torch.cuda.is_current_stream_capturing()


def captured(device: torch.device, work: Work) -> Work:
    """What repeats ``work``, which is recorded as a graph and not run. It has to have run before on
    the same tensors: a kernel that Triton still had to load would end the capture."""
    with entered(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        capture = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        with torch.cuda.stream(stream), capture:  # which leaves its stream on if it fails
            work()

    def repeat() -> None:
        with entered(device):
            graph.replay()

    return repeat


def milliseconds(device: torch.device, work: Work, repeats: int = 3) -> float:
    """The least time of a few runs, after one that compiles, on the device's current stream."""
    with entered(device):
        stream = torch.cuda.current_stream(device)
        work()
        times = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            work()
            end.record(stream)
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return min(times)
