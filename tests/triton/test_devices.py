"""Graphs, times and launches on the device of the tensors, which is not the current one.

The devices are tests/fake_cuda.py's; what launches is no kernel of the package, but torch.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")

from rnnfast.problem import problem_of
from rnnfast.triton import device, run, tune
from rnnfast.triton.graphs import FEWEST_STEPS, MOST_GRAPHS, SWITCH, Graphs, allowed

from ..cases import Case, leaves, scan_of
from ..fake_cuda import NOT_PERMITTED, Fake, Graph

SOURCES = Path(device.__file__).parent


class Given(NamedTuple):
    x: Tensor
    scale: float


class Made(NamedTuple):
    y: Tensor


def work(given: Given, made: Made) -> None:
    made.y.copy_(given.x * given.scale)


def call(
    graphs: Graphs,
    cuda: Fake,
    value: float,
    width: int = 3,
    scale: float = 2.0,
    on: int = 1,
    does: Callable[..., None] = work,
) -> None:
    """A call with this value; its result is right."""
    given = Given(cuda.place(torch.full((width,), value), on), scale)
    made = Made(cuda.place(torch.full((width,), torch.nan), on))
    graphs.run(("work",), does, (given,), (made,), ())
    assert made.y.cpu().tolist() == [value * scale] * width


# --- one door ------------------------------------------------------------------------------------


def test_nothing_else_asks_torch_cuda_or_launches() -> None:
    """``kernel[grid](…)`` is how Triton launches."""
    for path in SOURCES.glob("*.py"):
        if path.name == "device.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            at = f"{path.name}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.cuda"), at
            launches = isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
            assert not launches, at


def test_a_door_leads_to_one_device(cuda: Fake) -> None:
    mixed = [cuda.place(torch.ones(1), 0), cuda.place(torch.ones(1), 1)]
    with pytest.raises(ValueError, match=r"on one device are wanted, got: \['cuda:0', 'cuda:1'\]"):
        device.device_of(mixed)
    with pytest.raises(ValueError, match="got: \\[\\]"):
        device.device_of([None, 3])


class Noted:
    """A kernel that does nothing but note where it is launched."""

    def __init__(self) -> None:
        self.devices: list[int] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **given: self.devices.append(torch.cuda.current_device())


def test_launches_happen_within_a_door_s_block(cuda: Fake) -> None:
    kernel, x = Noted(), cuda.place(torch.ones(1), 1)
    with device.Door(mine(1)) as door:
        launch = door.launcher(kernel, (1,), x=x)
        launch(step=0)
        with device.Door(mine(0)) as other:
            with pytest.raises(ValueError, match="on cuda:0 are wanted, got: cuda:1"):
                other.launcher(kernel, (1,), x=x)
        launch(step=1)
    assert kernel.devices == [1, 1]
    assert torch.cuda.current_device() == 0
    with pytest.raises(RuntimeError, match="cuda:1 outside of its door's block"):
        launch(step=2)


def test_facts_are_the_tensors_devices(cuda: Fake) -> None:
    assert device.facts_of(torch.device("cuda", 1)).name == "second"
    assert device.facts_of(torch.device("cuda", 0)).shared > device.facts_of(mine(1)).shared
    assert device.processors(mine(1)) == 108


@pytest.mark.usefixtures("cuda")
def test_explain_speaks_of_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("gru", H=5)
    problem = problem_of(scan_of(case, leaves(case, torch.float32)))
    asked: list[torch.device] = []
    monkeypatch.setattr(run, "facts_of", lambda d: asked.append(d) or device.facts_of(d))
    for index in (0, 1):
        told = run.describe(problem._replace(device="cuda", device_index=index))
        assert told == "resident (one launch), 16 sequences a program"
    assert asked == [mine(0), mine(1)]


def mine(index: int) -> torch.device:
    return torch.device("cuda", index)


def test_whether_the_stream_of_the_device_is_captured(cuda: Fake) -> None:
    side = torch.cuda.Stream(mine(1))
    y = cuda.place(torch.zeros(FEWEST_STEPS, 2, 3))
    assert allowed(y)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side), device.entered(mine(0)):
        assert device.capturing(mine(1))
        assert not device.capturing(mine(0))
        assert not allowed(y)
    assert not device.capturing(mine(1))


@pytest.mark.parametrize("shape", [(FEWEST_STEPS - 1, 2, 3), (FEWEST_STEPS, 0, 3), (1, 2, 3)])
def test_no_graph_of_few_steps_or_of_nothing(cuda: Fake, shape: tuple[int, ...]) -> None:
    assert not allowed(cuda.place(torch.zeros(shape)))
    assert not allowed(torch.zeros(FEWEST_STEPS, 2, 3))  # on the CPU


def test_graphs_can_be_forbidden(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not allowed(cuda.place(torch.zeros(FEWEST_STEPS, 2, 3)))


def test_times_are_those_of_the_tensors_stream(cuda: Fake) -> None:
    def launches() -> None:
        cuda.stream(1).time += 3  # what device 1 has to do

    side = torch.cuda.Stream(mine(1))
    assert device.milliseconds(mine(1), launches) == 3
    with torch.cuda.stream(side), device.entered(mine(0)):
        assert device.milliseconds(mine(1), launches) == 3
    assert torch.cuda.current_device() == 0


# --- graphs --------------------------------------------------------------------------------------


def test_a_graph_is_made_at_the_second_call_and_sees_new_values(cuda: Fake) -> None:
    graphs = Graphs()
    for value, made in ((1.0, 0), (2.0, 1), (3.0, 1), (4.0, 1)):
        call(graphs, cuda, value)
        assert len(cuda.graphs) == made
    (graph,) = cuda.graphs
    assert graph.stream is not None
    assert graph.stream.device == mine(1)
    assert graph.steps
    assert torch.cuda.current_device() == 0


class Sums(NamedTuple):
    y: Tensor
    total: Tensor


class Copies(TorchDispatchMode):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.copy_.default
        return func(*args, **kwargs or {})


def test_what_is_written_only_is_copied_back_only(cuda: Fake) -> None:
    def sums(given: Given, made: Sums) -> None:
        torch.mul(given.x, given.scale, out=made.y)
        made.total.add_(given.x)

    graphs = Graphs()
    for value in (1.0, 2.0, 3.0):
        given = Given(cuda.place(torch.tensor([value])), 2.0)
        made = Sums(*(cuda.place(torch.tensor([start])) for start in (torch.nan, 7 * value)))
        with Copies() as copies:
            graphs.run(("sums",), sums, (given,), (made,), (made.total,))
        assert [t.item() for t in made] == [2 * value, 8 * value]
    assert len(cuda.graphs) == 1
    assert copies.count == 4  # x and the total there, both results back


def test_another_size_or_constant_or_stream_is_another_graph(cuda: Fake) -> None:
    graphs, side = Graphs(), torch.cuda.Stream(mine(1))
    for _ in range(2):
        call(graphs, cuda, 1.0)
        call(graphs, cuda, 1.0, width=4)
        call(graphs, cuda, 1.0, scale=3.0)
        with torch.cuda.stream(side), device.entered(mine(0)):
            call(graphs, cuda, 1.0)
    assert len(cuda.graphs) == 4


def test_a_graph_made_in_inference_mode_serves_outside_of_it(cuda: Fake) -> None:
    graphs = Graphs()
    with torch.inference_mode():
        call(graphs, cuda, 1.0)
        call(graphs, cuda, 2.0)
    call(graphs, cuda, 3.0)
    with torch.inference_mode():
        call(graphs, cuda, 4.0)
    assert len(cuda.graphs) == 1


def test_two_devices_have_graphs_of_their_own(cuda: Fake) -> None:
    graphs = Graphs()
    for value in (1.0, 2.0, 3.0, 4.0):
        for index in (0, 1):
            call(graphs, cuda, value, on=index)
    assert [graph.stream.device for graph in cuda.graphs] == [mine(0), mine(1)]


def test_no_more_than_a_few_are_kept(cuda: Fake) -> None:
    graphs = Graphs()
    for width in range(1, MOST_GRAPHS + 2):
        call(graphs, cuda, 1.0, width)
        call(graphs, cuda, 1.0, width)
    assert len(cuda.graphs) == MOST_GRAPHS + 1
    assert len(graphs._kept) == MOST_GRAPHS
    call(graphs, cuda, 1.0, MOST_GRAPHS + 1)
    assert len(cuda.graphs) == MOST_GRAPHS + 1
    call(graphs, cuda, 1.0, 1)  # forgotten: plain, then captured again
    call(graphs, cuda, 1.0, 1)
    assert len(cuda.graphs) == MOST_GRAPHS + 2


def stops(given: Given, made: Made) -> None:
    """Work that fails in a capture, with half of it recorded."""
    made.y.fill_(7)
    if device.capturing(made.y.device):
        raise MemoryError("half-way")
    work(given, made)


def waits(given: Given, made: Made) -> None:
    """Work that spoils a capture, so that ending it is an error of its own."""
    if device.capturing(made.y.device):
        torch.cuda.synchronize()
    work(given, made)


@pytest.mark.parametrize(
    ("bad", "error"), [(stops, "half-way"), (waits, f"previous error|{NOT_PERMITTED}")]
)
def test_a_capture_that_fails_leaves_nothing(
    cuda: Fake, bad: Callable[..., None], error: str
) -> None:
    graphs, side = Graphs(), torch.cuda.Stream(mine(1))
    with torch.cuda.stream(side), device.entered(mine(0)):
        call(graphs, cuda, 1.0, does=bad)
        with pytest.raises((MemoryError, RuntimeError), match=error):
            call(graphs, cuda, 2.0, does=bad)
        assert torch.cuda.current_device() == 0
        assert torch.cuda.current_stream(mine(1)) is side
        assert not device.capturing(mine(1))
        assert not graphs._kept
        for value in (3.0, 4.0, 5.0):
            call(graphs, cuda, value)
    assert len(graphs._kept) == 1


def in_threads(cuda: Fake, *tasks: Callable[[], None]) -> None:
    """All at once; the first error is raised."""
    errors: list[BaseException] = []
    begin = threading.Barrier(len(tasks))

    def run(task: Callable[[], None]) -> None:
        try:
            with cuda.running():
                begin.wait()
                task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_with_sizes_and_devices_of_their_own(cuda: Fake) -> None:
    graphs = Graphs()

    def task(width: int, on: int) -> Callable[[], None]:
        def run() -> None:
            for n in range(8):
                call(graphs, cuda, float(n), width, on=on)

        return run

    in_threads(cuda, task(3, 0), task(3, 1), task(4, 1))
    assert len(cuda.graphs) == 3


def test_threads_use_one_graph_by_turns(cuda: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, inside, never = Graphs(), list[str](), threading.Event()
    replay = Graph.replay

    def alone(graph: Graph) -> None:
        assert inside == []
        inside.append(threading.current_thread().name)
        never.wait(0.01)  # the other thread may go on, if it can
        replay(graph)
        inside.pop()

    monkeypatch.setattr(Graph, "replay", alone)

    def task(value: float) -> Callable[[], None]:
        def run() -> None:
            for n in range(5):
                call(graphs, cuda, value + n)

        return run

    in_threads(cuda, task(10.0), task(20.0))
    assert len(cuda.graphs) == 1


def test_threads_tune_apart(cuda: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each key has its own best; all end up in the file."""
    monkeypatch.delenv(tune.SWITCH)
    plans = [tune.Tiling(False, n, 0, 0, 0, 0, 0) for n in range(4)]
    found: dict[int, tune.Tiling] = {}

    def task(best: int) -> Callable[[], None]:
        def run() -> None:
            found[best] = tune.best(
                f"key {best}", plans, lambda plan: abs(plan.block_b - best) + 1.0
            )

        return run

    in_threads(cuda, *(task(best) for best in range(4)))
    assert found == dict(enumerate(plans))
    assert all(tune.best(f"key {n}", plans) == plans[n] for n in range(4))
