"""Transforms of a layer by the kernels, the loop in plain torch, torch.nn and JAX, on the CPU.

    python -m benchmarks.transforms [--rounds N] [--threads N] [--jax PYTHON] [--before PATH]

Each peer is a process of its own (transform_peers.py), and they take
turns: a round gives every transform of every peer a call that is not timed and CALLS that are. JAX
is `lax.scan`, jitted, by the Python of an environment that has it; "before" is another checkout of
rnnfast, with its extension built, which the page leaves out. What a peer computes is compared
first. A ratio is of the medians of a round; what is reported is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import machine, records
from .measure import Summary
from .transform_peers import AGAINST, OURS, data

OURS_NAME = "rnnfast"
CALLS, SLOW = 3, 0.05  # calls timed of a transform in a round; seconds beyond which one will do
NAMES = ("forward", "training step", *AGAINST)


@dataclass(frozen=True)
class Row:
    """A transform of a peer; ``ms`` is 0 where it can't, or where what it computes differs."""

    cell: str
    transform: str
    peer: str
    rounds: int
    ms: float
    low: float  # where the median may lie, 95 %
    high: float
    of_against: float  # times what it is held against, of the same peer (AGAINST)
    of_ours: float  # times rnnfast's
    note: str


class Peer:
    """A process that calls transforms; ``python`` and ``path``: whose, and the rnnfast in it."""

    def __init__(self, name: str, cell: str, threads: int, python: str, path: Path) -> None:
        self.name = name
        kind = OURS_NAME if name == "before" else name
        code = (
            f"import sys; sys.path.insert(0, {str(path)!r}); import rnnfast; "
            f"sys.path.insert(0, {str(machine.ROOT)!r}); from benchmarks import transform_peers; "
            f"transform_peers.serve({kind!r}, {cell!r}, {threads})"
        )
        self.process = subprocess.Popen(
            [python, "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=machine.ROOT,
        )
        self._answer()

    def ask(self, name: str, what: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name}\t{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended: {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def why_not(peer: Peer, ours: Peer, name: str, folder: Path) -> str:
    """Why there are no times of a peer's transform, "" where there are: the gate."""
    paths = [folder / "a", folder / "b"]
    if ours.ask(name, f"={paths[0]}") is None:
        raise RuntimeError(f"rnnfast can't: {name}")
    if peer.ask(name, f"={paths[1]}") is None:
        return "can't"
    a, b = (torch.load(path, weights_only=True) for path in paths)
    alike = a.keys() == b.keys() and all(
        float((a[k] - b[k]).abs().max()) <= 1e-3 * (1 + float(b[k].abs().max())) for k in a
    )
    return "" if alike else "differs"


def measure(cell: str, peers: Sequence[Peer], rounds: int, show: Callable[[str], Any]) -> list[Row]:
    """The first of the peers is rnnfast."""
    with tempfile.TemporaryDirectory() as folder:
        notes = {(p.name, n): why_not(p, peers[0], n, Path(folder)) for n in NAMES for p in peers}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in notes}
    for number in range(rounds):
        turn = number % len(peers)
        for name in NAMES:
            for peer in (*peers[turn:], *peers[:turn]):
                if not notes[peer.name, name]:
                    own = times[peer.name, name]
                    _, *seconds = peer.ask(name, str(1 + (1 if own[-1:] > [SLOW] else CALLS)))
                    own.append(statistics.median(seconds))
        show(f"{cell}: round {number + 1} of {rounds}")
    return [_row(cell, name, peer.name, times, notes) for name in NAMES for peer in peers]


def _row(
    cell: str,
    name: str,
    peer: str,
    times: dict[tuple[str, str], list[float]],
    notes: dict[tuple[str, str], str],
) -> Row:
    if notes[peer, name]:
        return Row(cell, name, peer, 0, 0.0, 0.0, 0.0, 0.0, 0.0, notes[peer, name])

    def over(other: tuple[str, str]) -> float:
        pairs = zip(times[peer, name], times[other], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    own = Summary.of([1e3 * seconds for seconds in times[peer, name]])
    ms = (round(value, 3) for value in (own.median, own.low, own.high))
    against, ours = over((peer, AGAINST.get(name, name))), over((OURS_NAME, name))
    return Row(cell, name, peer, len(times[peer, name]), *ms, against, ours, "")


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown: of each transform rnnfast's time, and the peers' as multiples of it."""
    every = dict.fromkeys(row.peer for row in rows)
    peers = [peer for peer in every if peer not in (OURS_NAME, "before")]
    lines = [
        f"| cell | transform | rnnfast | is | {' | '.join(peers)} |",
        f"|---|---|--:|---|{'--:|' * len(peers)}",
    ]
    by_key = {(row.cell, row.transform, row.peer): row for row in rows}
    for cell in dict.fromkeys(row.cell for row in rows):
        for name in NAMES:
            own = by_key[cell, name, OURS_NAME]
            held = f"{own.of_against:.1f} x {AGAINST[name]}" if name in AGAINST else ""
            each = (by_key[cell, name, peer] for peer in peers)
            others = " | ".join(row.note or f"{row.of_ours:.2f}" for row in each)
            lines.append(f"| {cell} | {name} | {own.ms:.2f} ms | {held} | {others} |")
    return lines


def per_sample_bytes(cell: str) -> int:
    """Of what per-sample gradients return: the batch times the weights."""
    of = data(cell)
    return of.x.shape[1] * sum(w.numel() * w.itemsize for w in of.p.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transforms")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", nargs="+", choices=list(OURS), default=list(OURS))
    parser.add_argument("--jax", metavar="PYTHON", help="of an environment with JAX")
    parser.add_argument("--before", type=Path, metavar="PATH", help="another checkout of rnnfast")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    path = options.out or records.folder("cpu", options.threads) / "transforms.csv"
    facts = records.facts("cpu", options.threads, rounds=options.rounds)
    rows: list[Row] = []
    for cell in options.cells:
        places = [(name, sys.executable, machine.ROOT) for name in (OURS_NAME, "loop", "torch.nn")]
        if options.before:
            places.insert(1, ("before", sys.executable, options.before))
        if options.jax:
            places.append(("JAX", options.jax, machine.ROOT))
        peers = [Peer(name, cell, options.threads, python, at) for name, python, at in places]
        try:
            rows += measure(cell, peers, options.rounds, lambda line: print(line, file=sys.stderr))
        finally:
            for peer in peers:
                peer.close()
        records.write(path, rows, facts)
    print("\n".join(table(rows)))
    for cell in options.cells:
        print(f"{cell}: per-sample gradients are {per_sample_bytes(cell) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
