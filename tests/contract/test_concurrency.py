"""One layer, several threads; and a forked process that uses what its parent has used."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnnfast import _ext
from tests.contract.helpers import KINDS, Maker, results, run, twins

REPOSITORY = Path(__file__).resolve().parents[2]


def in_two_threads(work: Any, inputs: list[Tensor]) -> list[Any]:
    """`work(x)` for every input, in two threads that start together; errors are re-raised."""
    done: list[Any] = [None] * len(inputs)
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def worker(mine: int) -> None:
        try:
            start.wait(timeout=30)
            for index in range(mine, len(inputs), 2):
                done[index] = work(inputs[index])
        except BaseException as error:  # carried to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=worker, args=(mine,)) for mine in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_call_one_layer(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, 4, 5, 2, bidirectional=True)
    inputs = [torch.randn(1 + i % 7, 1 + i % 3, 4) for i in range(30)]

    def forward(x: Tensor) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in results(*layer(x)).items()}

    alone = [forward(x) for x in inputs]
    together = in_two_threads(forward, inputs)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_train_one_layer(make_layer: Maker, kind: str) -> None:
    layer, _ = twins(make_layer, kind, 4, 5, 2, bidirectional=True)
    inputs = [torch.randn(1 + i % 7, 1 + i % 3, 4) for i in range(16)]
    alone = [run(layer, x) for x in inputs]
    together = in_two_threads(lambda x: run(layer, x), inputs)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


FORK = """
import os, signal, sys, time, torch
import {family}
torch.manual_seed(0)
torch.set_num_threads(2)
layers = [cls(64, 128) for cls in ({family}.LSTM, {family}.GRU, {family}.RNN)]
x = torch.randn(24, 32, 64)
before = []
for layer in layers:  # with gradients, so that every pool of threads there is has started
    output, _ = layer(x)
    output.sum().backward()
    before.append(output.detach())
sys.stdout.flush()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as DataLoader's workers do: OpenMP's pool does not survive a fork
    same = all(torch.allclose(layer(x)[0], want, atol=1e-5) for layer, want in zip(layers, before))
    os._exit(0 if same else 3)
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.02)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
sys.exit(4)
"""


def test_a_forked_child_runs_what_its_parent_ran(make_layer: Maker) -> None:
    family = make_layer.namespace.__name__
    script = FORK.format(family=family)
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    meaning = {3: "the child's numbers differ", 4: "the child hangs", -11: "a segfault"}
    assert child.returncode == 0, meaning.get(child.returncode, child.stderr[-2000:])


FORK_OF_SCANS = """
import faulthandler, os, sys, torch
import rnnfast
from tests import own_cells
torch.manual_seed(0)
torch.set_num_threads(2)
H = 256
gates, weight, zero = torch.randn(8, 1, 4 * H), torch.randn(4 * H, H), torch.zeros(1, H)

def y(cell):
    with torch.no_grad():  # no product of torch's, which would hang in a child by itself
        return rnnfast.scan(
            cell, gates, [zero, zero], [weight], projected=True, backend="cpu"
        ).y

cells = ["lstm", own_cells.lstm.name]
before = [y(cell) for cell in cells]
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(20, exit=True)
    os._exit(0 if all(torch.equal(y(cell), want) for cell, want in zip(cells, before)) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_keeps_to_one_thread_by_itself() -> None:
    child = subprocess.run(
        [sys.executable, "-c", FORK_OF_SCANS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    meaning = {1: "the child hangs", 3: "the child's numbers differ"}
    assert child.returncode == 0, (meaning.get(child.returncode), child.stderr[-2000:])


BOUND = """
import torch
import rnnfast
from rnnfast import _ext
torch.set_num_threads(2)
layer, x = rnnfast.LSTM(64, 256), torch.randn(8, 4, 64)
before = _ext.cpu().cpu_threads()
with rnnfast.use_backend("cpu"):
    layer(x)[0].sum().backward()  # OpenMP binds this thread to one processor
assert before == _ext.cpu().cpu_threads() == 2, (before, _ext.cpu().cpu_threads())
"""


@pytest.mark.skipif(
    _ext.why_no_cpu() is not None or len(os.sched_getaffinity(0)) < 2,
    reason="one processor, or no kernels for it",
)
def test_threads_that_are_bound_to_processors_are_still_counted() -> None:
    child = subprocess.run(
        [sys.executable, "-c", BOUND],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_PROC_BIND": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr[-2000:]
