"""Data-parallel training by two processes against one, for the same minibatch:

    python -m benchmarks.distributed [--rounds N] [--only NAME]

writes more/distributed.csv beside the results of the layers. What is timed is a step as `lm train`
has it: tokens in, forward, loss, backward, clipping, SGD.

All ways of a case take turns in one pair of processes: where one process is at work alone, the
other waits at a barrier. A round gives every way a step that is not timed and STEPS that are.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import rnnfast
from rnnfast.text.model import RNNLM, ModelSpec, copy_weights

from . import records, table
from .measure import Summary

WORLD = 2
STEPS = 2  # timed, of a way in a round
VOCABULARY = 28


@dataclass(frozen=True)
class Case:
    """A language model and the minibatch of a step, over all processes."""

    name: str
    spec: ModelSpec
    batch: int
    num_steps: int


CASES = (
    Case("RNN 256", ModelSpec(VOCABULARY, 256), 32, 35),
    Case("LSTM 32", ModelSpec(VOCABULARY, 32, "LSTM"), 1024, 32),
    Case("LSTM 2 x 512", ModelSpec(VOCABULARY, 512, "LSTM", 2), 32, 35),
)


@dataclass(frozen=True)
class Way:
    """How a step is made: ``alone`` in one process by ``threads`` and with 1/``part`` of the
    minibatch, else in two of a thread each."""

    name: str
    alone: bool
    threads: int = 1
    part: int = 1


ONE = Way("one process, one thread", True)
TWO_THREADS = Way("one process, two threads", True, threads=2)
TWO = Way("two processes", False, part=WORLD)
NO_SYNC = Way("two processes, no_sync", False, part=WORLD)
EXCHANGE = Way("the all-reduce", False)
PARTS = tuple(Way(f"one thread, 1/{n} of the rows", True, part=n) for n in (2, 4, 8))
WAYS = (ONE, TWO_THREADS, TWO, NO_SYNC, EXCHANGE, *PARTS)


@dataclass(frozen=True)
class Row:
    """A way of a case; times in milliseconds."""

    case: str
    parameters: int
    batch: int  # rows of all processes
    num_steps: int
    way: str
    rows: int  # of a process
    rounds: int
    ms: float
    q1_ms: float
    q3_ms: float
    ratio: float  # of one process on one thread to this, median over rounds
    ratio_low: float  # where the median may lie, 95 %
    ratio_high: float


class Steps:
    """The steps of a case: a model of one process, and its twin in DistributedDataParallel."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        self.plain, self.twin = (RNNLM.build("rnnfast", case.spec) for _ in range(2))
        copy_weights(self.plain, self.twin)
        self.net = nn.parallel.DistributedDataParallel(self.twin)
        self.tokens = torch.randint(VOCABULARY, (case.num_steps + 1, case.batch))
        self.parameters = sum(p.numel() for p in self.plain.parameters())
        self.flat = torch.zeros(self.parameters)

    def check(self) -> None:
        """No time is reported of results that differ: the gradients of both ways, before a step.

        Raises:
            AssertionError: they do.
        """
        self._backward(self.plain, self.plain, self.tokens)
        self._backward(self.net, self.twin, self._share())
        for a, b in zip(self.plain.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)

    def run(self, way: Way) -> None:
        """A step, or the exchange alone."""
        if way is EXCHANGE:
            dist.all_reduce(self.flat)
        elif way.alone:
            rows = self.case.batch // way.part
            self._step(self.plain, self.plain, self.tokens[:, :rows])
        else:
            with self.net.no_sync() if way is NO_SYNC else nullcontext():
                self._step(self.net, self.twin, self._share())

    def _share(self) -> Tensor:
        return self.tokens.chunk(WORLD, dim=1)[dist.get_rank()]

    def _step(self, net: nn.Module, model: RNNLM, tokens: Tensor) -> None:
        self._backward(net, model, tokens)
        rnnfast.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad

    def _backward(self, net: nn.Module, model: RNNLM, tokens: Tensor) -> None:
        model.zero_grad()
        logits, _ = net(tokens[:-1], model.begin_state(tokens.shape[1]))
        F.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten()).backward()


def measure(case: Case, rounds: int) -> list[Row]:
    """Rows of a case, in the first process; the second one works along. Both call it."""
    steps = Steps(case)
    steps.check()
    times: dict[Way, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        first = number % len(WAYS)
        for way in WAYS[first:] + WAYS[:first]:
            dist.barrier()
            if way.alone and dist.get_rank() > 0:
                continue
            torch.set_num_threads(way.threads)
            steps.run(way)
            started = time.perf_counter()
            for _ in range(STEPS):
                steps.run(way)
            times[way].append((time.perf_counter() - started) / STEPS * 1e3)
    dist.barrier()
    return [] if dist.get_rank() else [_row(steps, way, times) for way in WAYS]


def _row(steps: Steps, way: Way, times: dict[Way, list[float]]) -> Row:
    case, taken = steps.case, Summary.of(times[way])
    ratio = Summary.of([one / ms for one, ms in zip(times[ONE], times[way], strict=True)])
    return Row(
        case.name, steps.parameters, case.batch, case.num_steps, way.name, case.batch // way.part,
        len(times[way]), taken.median, taken.q1, taken.q3, ratio.median, ratio.low, ratio.high,
    )  # fmt: skip


def work(rank: int, port: int, cases: Sequence[Case], rounds: int, path: Path) -> None:
    """What each of the two processes does."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD)
    facts = records.facts("cpu", WORLD, rounds=rounds)
    rows = [row for case in cases for row in measure(case, rounds)]
    if rank == 0:
        records.write(path, rows, facts)
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this device")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if options.only in case.name]
    path = options.out or records.folder("cpu", WORLD) / "distributed.csv"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, cases, options.rounds, path), nprocs=WORLD)
    for row in table.read_csv(path, Row):
        print(f"{row.case:14} {row.way:30} {row.rows:5} rows {row.ms:9.2f} ms {row.ratio:6.2f}")
    print(path)


if __name__ == "__main__":
    main()
