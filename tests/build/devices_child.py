"""What the backend ``cuda`` launches on two devices that stand in for GPUs: devices.cpp, which has
to be loaded before torch. ``python -m tests.build.devices_child LIBRARY`` prints as JSON what was
noted while each thing was done, with another device the current one than the tensors'."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import rnnfast
from rnnfast.backends import registry
from rnnfast.problem import Cotangents, Needs, Saved, Scan, problem_of

from .. import own_cells
from ..cases import Case, leaves, scan_of
from ..steps import test_own_cpu as own
from ..training_cases import captured_steps, whole_steps


class Noted(NamedTuple):
    """A kernel of rnnfast by its symbol, a "product", or memory that is "pinned" or "unpinned"."""

    what: str
    device: int  # the current one
    stream: str  # of which device; "-": the default one of the current device
    tag: int  # of the thread
    shared: int  # bytes that the launch asks for


# Of what is forced, the devices that have it.
STRATEGIES = {
    "stepwise": (0, 1),
    "resident": (0, 1),
    "cluster:blocks=3": (0,),
    "grid:blocks=3,teams=2": (0, 1),
}
WHOLE_STEPS = ("stepwise", "resident", "grid:blocks=3", "")
CASE = Case("lstm", T=6, B=5, I=3, H=40)
LARGE = Case("lstm", T=2, B=64, I=3, H=768)  # of more shared memory than a kernel has unasked
STEPS = 3  # of a cell of one's own, each some launches
CALLS = 20  # of each thread
GRAPHS = 10  # of each device
TENSORS = 200  # more than what clips them is told in its arguments
BACKEND = registry.BACKENDS["cuda"]


def main(path: str) -> None:
    library = ctypes.CDLL(path)
    noted: dict[str, list[Noted] | str] = {}  # an error's text where there was one

    def note(name: str, task: Callable[[], object]) -> None:
        taken(library)
        try:
            task()
            noted[name] = taken(library)
        except Exception as error:
            noted[name] = repr(error)

    for device in (0, 1):
        torch.cuda.set_device(1 - device)
        for strategy, devices in STRATEGIES.items():
            if device in devices:
                os.environ["RNNFAST_PLAN"] = strategy
                scan = scan_on(CASE, device)
                note(f"{device} {strategy}", lambda scan=scan: both_passes(scan))
        os.environ["RNNFAST_PLAN"] = "stepwise"
        scan = own_scan_on(device)
        note(f"{device} cell of one's own", lambda scan=scan: on_side_stream(scan))
        os.environ["RNNFAST_PLAN"] = "resident"
        scan = scan_on(CASE, device)
        note(f"{device} side stream", lambda scan=scan: on_side_stream(scan))
        note(f"{device} pipelined", lambda device=device: pipelined(device))
        gradients = [torch.ones(3, device=f"cuda:{device}") for _ in range(TENSORS)]
        note(f"{device} clip", lambda tensors=gradients: clip(tensors))
        note(f"{device} clip in graphs", lambda tensors=gradients: clip_in_graphs(tensors))
        os.environ.pop("RNNFAST_PLAN")
        assert torch.cuda.current_device() == 1 - device
    note("threads", lambda: threads(library))
    torch.cuda.set_device(0)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    for strategy in WHOLE_STEPS:
        os.environ["RNNFAST_PLAN"] = strategy
        note(f"a whole step in a graph: {strategy}", whole_step)
    os.environ.pop("RNNFAST_PLAN")
    note("a wait in a graph", wait_in_graph)
    print(json.dumps({"noted": noted, "plans": [plan_on(0), plan_on(1)]}))


def taken(library: ctypes.CDLL) -> list[Noted]:
    text = ctypes.create_string_buffer(1 << 20)
    library.stand_in_log(text, ctypes.c_size_t(len(text)))
    lines = [line.split() for line in text.value.decode().splitlines()]
    return [Noted(what, int(n), on, int(tag), int(size)) for what, n, on, tag, size in lines]


def scan_on(case: Case, device: int) -> Scan:
    return scan_of(case, leaves(case, torch.bfloat16, f"cuda:{device}"))


def own_scan_on(device: int) -> Scan:
    """Of a cell whose kernels nvcc makes here."""
    return own.on(own.scan_of(own_cells.lstm, torch.float32, T=STEPS), f"cuda:{device}")


def both_passes(scan: Scan) -> None:
    """In this thread: autograd's would make the tensors' device the current one."""
    with torch.no_grad():
        (result, extra), needs = BACKEND.forward(scan), Needs(True, True, True)
        saved = Saved(result.y, list(result.trace), extra)
        cotangents = Cotangents(torch.ones_like(result.y), list(result.final), [])
        BACKEND.backward(scan, saved, cotangents, needs)


def on_side_stream(scan: Scan) -> None:
    """One of the tensors' device, while another device is the current one."""
    before = torch.cuda.current_device()
    with torch.cuda.stream(torch.cuda.Stream(scan.input.device)), torch.cuda.device(before):
        both_passes(scan)


def pipelined(device: int) -> None:
    """Two layers side by side, each on a stream of its own; backward in autograd's thread."""
    os.environ["RNNFAST_PIPELINE"] = "8"
    layer = rnnfast.LSTM(3, 40, 2, device=f"cuda:{device}", dtype=torch.bfloat16)
    with rnnfast.use_backend("cuda"):
        y, _ = layer(torch.ones(20, 5, 3, device=f"cuda:{device}", dtype=torch.bfloat16))
    y.backward(torch.ones_like(y))
    os.environ.pop("RNNFAST_PIPELINE")


def clip(tensors: list[Tensor]) -> None:
    parameters = [torch.nn.Parameter(torch.empty_like(t)) for t in tensors]
    for parameter, gradient in zip(parameters, tensors, strict=True):
        parameter.grad = gradient
    rnnfast.clip.clip_grad_norm_(parameters, 1.0)
    rnnfast.clip.clip_grad_value_(parameters, 1.0)


def clip_in_graphs(tensors: list[Tensor]) -> None:
    """One graph after the other, of which none outlives the next, and one more call."""
    stream = torch.cuda.Stream(tensors[0].device)
    for _ in range(GRAPHS):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            clip(tensors)
    del graph
    clip(tensors)
    torch._C._host_emptyCache()


def whole_step() -> None:
    """Some before it on a side stream, and one that is captured."""
    without_cudnn = torch.backends.cudnn.flags(enabled=False)  # which has no stand-in
    with rnnfast.use_backend("cuda"), without_cudnn:
        whole_steps(rnnfast.LSTM, "cuda", captured_steps, steps=2)


def wait_in_graph() -> None:
    x = torch.ones(3, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.sum().item()


def threads(library: ctypes.CDLL) -> None:
    """Each with a size and a device, whose number is its tag; the first error is raised."""
    errors: list[BaseException] = []
    scans = [(device, scan_on(case, device)) for device in (0, 1) for case in (CASE, LARGE)]
    begin = threading.Barrier(len(scans))

    def task(device: int, scan: Scan) -> None:
        try:
            library.stand_in_tag(device)
            torch.cuda.set_device(1 - device)
            begin.wait()
            for _ in range(CALLS):
                both_passes(scan)
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=task, args=one) for one in scans]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]


def plan_on(device: int) -> str:
    """For a size that no single block has room for."""
    case = Case("lstm", T=100, B=8, I=8, H=512)
    return BACKEND.strategy(problem_of(scan_on(case, device)))


if __name__ == "__main__":
    main(sys.argv[1])
