"""Forward of one layer by rnnfast, torch.nn, torch.compile, ONNX Runtime, OpenVINO and JAX.

    python -m benchmarks.forward_peers [--peers PYTHON] [--rounds N] [--only PATTERN] [--write]

Each is a process of its own (forward_peer.py), and they take turns: a round asks each for so many
calls as rnnfast makes in 0.1 s. What is shown is the median over the rounds, in milliseconds.
Before that all outputs are compared with torch.nn's in float64; who is off by more than twice what
torch.nn is in float32, and 4 eps, is not timed. ``--peers`` names an interpreter that has numpy,
onnx, onnxruntime, openvino and jax, or some of them; without it there are only those of torch.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import records
from .cases import CLASS_NAMES, Case

SIZES = (
    (32, 1024, 28, 32),
    (35, 32, 28, 256),
    (100, 64, 256, 256),
    (100, 1, 128, 128),
    (1, 1, 128, 128),
    (100, 32, 512, 512),
)
CASES = tuple(Case(cell, *size) for size in SIZES for cell in CLASS_NAMES)
OF_TORCH = ("rnnfast", "torch.nn", "torch.compile")
OTHERS = ("ONNX Runtime", "OpenVINO", "JAX")
TURN = 0.1  # seconds
LOOSER = 4  # of other libraries: their exp and tanh are not torch's


@dataclass(frozen=True)
class Forward:
    """A row: one peer at one case; ``ms`` nan, and why, where it was not timed."""

    case: str
    peer: str
    ms: float
    q1_ms: float
    q3_ms: float
    rounds: int
    reason: str = ""


class Peer:
    """A process that computes layers when it is asked to."""

    def __init__(self, name: str, python: str, threads: int) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.forward_peer", name, str(threads)],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, what: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(what), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return "its process ended"
        line = self._process.stdout.readline()
        return json.loads(line) if line else "its process ended"


def lay_down(case: Case, folder: Path) -> tuple[dict[str, Any], Any, float]:
    """What peers are told of a layer, its output in float64, and how far off one may be."""
    import numpy as np

    torch.manual_seed(0)
    layer = getattr(torch.nn, case.class_name)(case.I, case.H)
    x = torch.randn(case.T, case.B, case.I)
    held = {n.removesuffix("_l0"): p.detach().numpy() for n, p in layer.named_parameters()}
    np.savez(folder / "numbers.npz", x=x.numpy(), **held)
    with torch.no_grad():
        single = layer(x)[0].double()
        exact = layer.double()(x.double())[0]
    eps = torch.finfo(torch.float32).eps
    allowed = 2 * float((single - exact).abs().max()) + 4 * eps * float(exact.abs().max())
    told = {"kind": case.class_name, "T": case.T, "B": case.B, "I": case.I, "H": case.H}
    return {**told, "numbers": str(folder / "numbers.npz")}, exact.numpy(), allowed


def refusal(peer: Peer, told: dict[str, Any], exact: Any, allowed: float) -> str | None:
    """Why it is not to be timed."""
    import numpy as np

    output = Path(told["numbers"]).with_name(f"{peer.name.replace(' ', '')}.npy")
    said = peer.ask({**told, "output": str(output)})
    if said is not None:
        return str(said)
    wrong = float(np.abs(np.load(output).astype(np.float64) - exact).max())
    limit = allowed if peer.name in OF_TORCH else LOOSER * allowed
    return None if wrong <= limit else f"off by {wrong:.1e}, allowed {limit:.1e}"


def timed(case: Case, peers: Sequence[Peer], rounds: int, folder: Path) -> Iterator[Forward]:
    told, exact, allowed = lay_down(case, folder)
    able: list[Peer] = []
    nan, first = float("nan"), 0.0
    for peer in peers:
        reason = refusal(peer, told, exact, allowed)
        if reason is None:
            able.append(peer)
        else:
            yield Forward(case.name, peer.name, nan, nan, nan, 0, reason)
    found: dict[str, list[float]] = {peer.name: [] for peer in able}
    ended: dict[str, str] = {}
    calls = 3
    for number in range(-1, rounds):  # the first says how many calls make a turn
        for peer in able:
            said = peer.ask(calls) if peer.name not in ended else ""
            if isinstance(said, str):
                ended.setdefault(peer.name, said)
            elif number >= 0:
                found[peer.name].append(1e3 * said)
            elif peer is able[0]:
                first = said
        if number < 0:
            calls = max(1, int(TURN / max(first, 1e-7)))
    for name, ms in found.items():
        if name in ended:
            yield Forward(case.name, name, nan, nan, nan, 0, ended[name])
        else:
            q1, median, q3 = statistics.quantiles(ms, n=4)
            yield Forward(case.name, name, median, q1, q3, len(ms))


def table(rows: Sequence[Forward]) -> list[str]:
    """A line a case: the median of each peer, the first in bold."""
    names = [n for n in (*OF_TORCH, *OTHERS) if any(row.peer == n for row in rows)]
    lines = [f"| case | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for case in dict.fromkeys(row.case for row in rows):
        of = {row.peer: row for row in rows if row.case == case}
        best = min((row.ms for row in of.values() if row.rounds), default=0.0)
        shown = []
        for name in names:
            row = of.get(name)
            text = f"{row.ms:.3g}" if row and row.rounds else "–"
            shown.append(f"**{text}**" if row and row.rounds and row.ms == best else text)
        lines.append(f"| {case} | {' | '.join(shown)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forward_peers")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter with the other libraries")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of names of cases")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results")
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error("--rounds: at least 2")
    if options.write and options.only != "*":
        parser.error("--write keeps all cases or none, not those of --only")
    threads = torch.get_num_threads()
    facts = records.facts("cpu", threads, rounds=options.rounds)
    rows: list[Forward] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = [stack.enter_context(Peer(name, sys.executable, threads)) for name in OF_TORCH]
        if options.peers:
            peers += [stack.enter_context(Peer(n, options.peers, threads)) for n in OTHERS]
        for case in CASES:
            if fnmatch.fnmatchcase(case.name, options.only):
                rows += timed(case, peers, options.rounds, folder)
                print("\n".join(table(rows)[-1:]), flush=True)
    print("\n".join(table(rows)))
    for row in rows:
        if row.reason:
            print(f"{row.case} {row.peer}: {row.reason}")
    if options.write:
        records.write(records.folder("cpu", threads) / "forward-peers.csv", rows, facts)


if __name__ == "__main__":
    main()
