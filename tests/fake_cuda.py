"""Devices that stand in for GPUs: torch.cuda's devices, streams, events and graphs, on CPU tensors.

``cuda.place(tensor)`` gives a tensor that says it lies on a device; what torch makes of it lies
there too. As on a GPU,

- an operation of torch goes to its tensors' device, and there to the stream that is current;
- Triton launches on the current device and its current stream. On another device than the
  arguments' the fake raises: a GPU would use addresses that are not its own;
- a graph records what reaches the stream that is captured, and runs nothing; anything else runs.

``cuda.log`` has every launch. Triton's kernels run in its interpreter; without it they do nothing.
An op of rnnfast is one operation here, inside of which nothing is seen: call the backend instead.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnnfast.products import multiply

NOT_PERMITTED = "operation not permitted when stream is capturing"
REAL_DEVICE = torch.Tensor.device


class Launched(NamedTuple):
    """``how``: "run", "recorded" or "replayed"; ``stream``: its handle, 0 the default one."""

    name: str
    device: int
    stream: int
    how: str


class Stream:
    def __init__(self, device: int, handle: int) -> None:
        self.device, self.cuda_stream = torch.device("cuda", device), handle
        self.time = 0.0  # what has been launched on it, a millisecond each
        self.capture: Graph | None = None


class Fake:
    """``devices``: (name, compute capability, multiprocessors) of each."""

    def __init__(self, *devices: tuple[str, int, int]) -> None:
        self.devices = devices
        self.log: list[Launched] = []
        self.graphs: list[Graph] = []
        self._handles = itertools.count(1)
        self._default = [Stream(index, 0) for index in range(len(devices))]
        self._own = threading.local()
        self._placed: dict[int, tuple[int, Any]] = {}  # keeps storages, so that none is another's
        self._loaded: set[Any] = set()

    # --- where tensors lie -----------------------------------------------------------------------

    def place(self, tensor: Tensor, device: int = 1) -> Tensor:
        """A copy that says it lies there."""
        with self.paused():
            copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            return self.claim(copy.copy_(tensor.detach()), device)

    def claim(self, tensor: Tensor, device: int) -> Tensor:
        storage = tensor.untyped_storage()
        self._placed[storage._cdata] = (device, storage)
        return tensor

    def device_of(self, tensor: Tensor) -> int | None:
        """None: on the CPU."""
        placed = self._placed.get(tensor.untyped_storage()._cdata)
        return None if placed is None else placed[0]

    def shown_device(self, tensor: Tensor) -> torch.device:
        device = None if self.own.paused else self.device_of(tensor)
        return REAL_DEVICE.__get__(tensor) if device is None else torch.device("cuda", device)

    # --- what each thread has --------------------------------------------------------------------

    @property
    def own(self) -> Any:
        if not hasattr(self._own, "device"):
            self._own.device, self._own.paused, self._own.target = 0, 0, None
            self._own.streams = list(self._default)
        return self._own

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Tensors are what they are."""
        self.own.paused += 1
        try:
            yield
        finally:
            self.own.paused -= 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """For each thread that uses the devices."""
        with _Operations(self), _Places(self):
            yield

    def index(self, device: Any) -> int:
        """Of a torch.device, a number, or None: the current one."""
        if isinstance(device, (torch.device, str)):
            device = torch.device(device).index
        return self.own.device if device is None else device

    def stream(self, device: Any = None) -> Stream:
        return self.own.streams[self.index(device)]

    def set_stream(self, stream: Stream) -> None:
        """As torch's, also makes its device the current one."""
        self.own.device = stream.device.index
        self.own.streams[self.own.device] = stream

    def new_stream(self, device: Any = None) -> Stream:
        return Stream(self.index(device), next(self._handles))

    def wait(self) -> None:
        """What the host does when it waits for a device: an error in a thread that captures."""
        for stream in self.own.streams:
            if stream.capture is not None:
                stream.capture.spoilt = True
                raise RuntimeError(NOT_PERMITTED)

    # --- launches --------------------------------------------------------------------------------

    def launch(self, kernel: Any, grid: tuple[int, ...], args: tuple, given: dict) -> None:
        name, here = kernel.__name__, self.own.device
        values = [*args, *given.values()]
        tensors = [value for value in values if isinstance(value, Tensor)]
        lie_on = {self.device_of(tensor) for tensor in tensors}
        if lie_on == {None}:  # the interpreter's
            with self.paused():
                return kernel.run(*args, grid=grid, warmup=False, **given)
        if lie_on != {here}:
            raise AssertionError(f"{name} launched on device {here}, its tensors are on {lie_on}")
        stream = self.stream()
        with self.paused():
            kind = (name, here, *(_specialised(value) for value in values))
        if stream.capture is not None:
            if kind not in self._loaded:
                stream.capture.spoilt = True
                raise RuntimeError(f"Triton Error [CUDA]: {NOT_PERMITTED}")
            self.log.append(Launched(name, here, stream.cuda_stream, "recorded"))
            stream.capture.steps.append(lambda: self._run(kernel, grid, args, given, "replayed"))
            return
        self._loaded.add(kind)
        self._run(kernel, grid, args, given, "run")

    def _run(self, kernel: Any, grid: tuple, args: tuple, given: dict, how: str) -> None:
        stream = self.stream()
        stream.time += 1
        self.log.append(Launched(kernel.__name__, self.own.device, stream.cuda_stream, how))
        if not hasattr(kernel, "rewrite"):  # compiled: there is nothing to run it on
            return
        with self.paused():
            kernel.run(*args, grid=grid, warmup=False, **given)

    # --- in place of torch.cuda ------------------------------------------------------------------

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.jit import KernelInterface

        def instead(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **given: self.launch(kernel, grid, args, given)

        monkeypatch.setattr(KernelInterface, "__getitem__", instead)
        shown = {
            "device": self.shown_device,
            "is_cuda": lambda tensor: self.shown_device(tensor).type == "cuda",
        }
        for name, told in shown.items():
            monkeypatch.setattr(torch.Tensor, name, property(told), raising=False)
        for name, value in _torch_cuda(self).items():
            monkeypatch.setattr(torch.cuda, name, value)
        # torch's on every device, so that results can be compared bit by bit
        monkeypatch.setattr(multiply, "_loaded", lambda slower=False: None)

    def properties(self, device: Any = None) -> Any:
        name, capability, processors = self.devices[self.index(device)]
        return SimpleNamespace(
            name=name,
            major=capability // 10,
            minor=capability % 10,
            multi_processor_count=processors,
            shared_memory_per_block_optin=(227 if capability >= 90 else 163) << 10,
        )


def _specialised(value: Any) -> Any:
    """What Triton compiles another kernel for: dtype and alignment, and constants."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return "number" if isinstance(value, (int, float)) else value


def _torch_cuda(cuda: Fake) -> dict[str, Any]:
    """What stands for the names of torch.cuda."""

    class device:
        def __init__(self, device: Any) -> None:
            self.index = cuda.index(device)

        def __enter__(self) -> None:
            self.before, cuda.own.device = cuda.own.device, self.index

        def __exit__(self, *_: object) -> None:
            cuda.own.device = self.before

    class stream:
        def __init__(self, entered: Stream) -> None:
            self.entered = entered

        def __enter__(self) -> None:
            self.before = (cuda.stream(self.entered.device), cuda.stream())
            cuda.set_stream(self.entered)

        def __exit__(self, *_: object) -> None:
            for stream in self.before:
                cuda.set_stream(stream)

    class graph(_GraphCapture):
        default_capture_stream = None
        fake, stream_context = cuda, stream

    return {
        "is_available": lambda: True,
        "device_count": lambda: len(cuda.devices),
        "current_device": lambda: cuda.own.device,
        "get_device_properties": cuda.properties,
        "current_stream": cuda.stream,
        "is_current_stream_capturing": lambda: cuda.stream().capture is not None,
        "synchronize": lambda device=None: cuda.wait(),
        "device": device,
        "Stream": cuda.new_stream,
        "stream": stream,
        "set_stream": cuda.set_stream,
        "Event": lambda enable_timing=False: Event(cuda),
        "CUDAGraph": lambda: Graph(cuda),
        "graph": graph,
    }


class Event:
    def __init__(self, cuda: Fake) -> None:
        self.cuda, self.stream, self.time = cuda, None, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = self.cuda.stream() if stream is None else stream
        self.time = self.stream.time

    def synchronize(self) -> None:
        self.cuda.wait()

    def elapsed_time(self, end: Event) -> float:
        if self.stream is not end.stream:
            raise AssertionError("events of two streams")
        return end.time - self.time


class Graph:
    def __init__(self, cuda: Fake) -> None:
        self.cuda, self.steps, self.spoilt = cuda, list[Callable[[], None]](), False
        self.stream: Stream | None = None
        cuda.graphs.append(self)

    def capture_begin(self) -> None:
        self.stream = self.cuda.stream()
        assert self.stream.capture is None
        self.stream.capture = self

    def capture_end(self) -> None:
        assert self.stream is not None
        self.stream.capture = None
        if self.spoilt:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        """On the current stream of the device that it was captured on, as torch's."""
        assert self.stream is not None
        own, before = self.cuda.own, self.cuda.own.device
        own.device = self.stream.device.index
        for step in self.steps:
            step()
        own.device = before


class _GraphCapture:
    """torch.cuda.graph, with its one default stream on whatever device was current, and with the
    stream that it leaves on where a capture fails."""

    default_capture_stream: Stream | None
    fake: Fake
    stream_context: Callable[[Stream], Any]

    def __init__(
        self, graph: Graph, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> None:
        kind = type(self)
        if stream is None and kind.default_capture_stream is None:
            kind.default_capture_stream = self.fake.new_stream()
        chosen = stream or kind.default_capture_stream
        assert chosen is not None
        self.graph, self.context = graph, self.stream_context(chosen)

    def __enter__(self) -> None:
        self.fake.wait()
        self.context.__enter__()
        self.graph.capture_begin()

    def __exit__(self, *error: Any) -> None:
        self.graph.capture_end()
        self.context.__exit__(None, None, None)


class _Places(TorchFunctionMode):
    """Calls that name a device: it becomes the CPU, and what they return lies where was said."""

    def __init__(self, cuda: Fake) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        own = self.cuda.own
        if own.paused or func is torch.device:
            return func(*args, **kwargs)
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        if func in (torch.Tensor.cpu, torch.Tensor.cuda):
            func, args = torch.Tensor.to, (*args, torch.device(func.__name__))
        named = [v for v in (*args, *kwargs.values()) if _names_a_device(v)]
        if not named:
            return func(*args, **kwargs)
        cpu, target = torch.device("cpu"), torch.device(named[0])
        args = [cpu if _names_a_device(v) else v for v in args]
        kwargs = {n: cpu if _names_a_device(v) else v for n, v in kwargs.items()}
        if func is torch.Tensor.to and self.cuda.shown_device(args[0]) != target:
            kwargs["copy"] = True
        before, own.target = own.target, target
        try:
            return func(*args, **kwargs)
        finally:
            own.target = before


def _names_a_device(value: Any) -> bool:
    known = isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda")
    return known or isinstance(value, torch.device)


class _Operations(TorchDispatchMode):
    """Every operation of torch: run, or recorded where its stream is captured."""

    def __init__(self, cuda: Fake) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.cuda.own.paused:
            return func(*args, **kwargs)
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        device = self._device(func, given)
        if device is None:
            return func(*args, **kwargs)
        stream = self.cuda.stream(device)
        if stream.capture is not None:
            return self._recorded(stream.capture, func, args, kwargs, device)
        return self._claimed(func(*args, **kwargs), device)

    def _device(self, func: Any, given: list[Tensor]) -> int | None:
        target = self.cuda.own.target
        places = {self.cuda.device_of(t) for t in given if t.dim() > 0 or len(given) == 1}
        if target is not None:
            return self.cuda.index(target) if target.type == "cuda" else None
        if len(places) > 1 and func is not torch.ops.aten.copy_.default:
            raise RuntimeError(f"{func}: tensors on devices {places}")
        found = places - {None}
        return self.cuda.device_of(given[0]) if len(found) > 1 else next(iter(found), None)

    def _claimed(self, results: Any, device: int) -> Any:
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and self.cuda.device_of(result) is None:
                self.cuda.claim(result, device)
        return results

    def _recorded(self, graph: Graph, func: Any, args: Any, kwargs: Any, device: int) -> Any:
        if any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments):
            graph.steps.append(lambda: func(*args, **kwargs))
            return kwargs.get("out", args[0])
        results = self._claimed(func(*args, **kwargs), device)
        if any(r.alias_info is not None for r in func._schema.returns):
            return results  # a view
        made = [r for r in tree_leaves(results) if isinstance(r, Tensor)]
        for result in made:
            result.fill_(torch.nan if result.is_floating_point() else 77)

        def repeat() -> None:
            for to, value in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
                to.copy_(value)

        if "empty" not in func._schema.name:
            graph.steps.append(repeat)
        return results
