"""Other recurrent kernels, where they are installed: timed against torch.nn (cuDNN) in pairs.

`python -m benchmarks.gpu_check.peers --out peers.csv` prints a line for each. A peer's numbers are
its own layer's: its weights differ, so only times are compared.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import measure, table, workload
from ..cases import Case, parse
from .stages import CUT, FAILED, MISSING, OK, Context, Outcome, run_command

CASES = ("lstm-T1024-B16-I768-H768", "lstm-T256-B64-I512-H512", "gru-T256-B64-I512-H512")
Call = Callable[[], Any]


class Peer(NamedTuple):
    """module: what it is imported as. dtype: that its kernels take. build(case, device) -> a call,
    forward and backward, that leaves gradients in what `leaves` gives."""

    name: str
    module: str
    dtype: torch.dtype
    build: Callable[[Case, str], tuple[Call, list[Tensor]]]


def _haste(case: Case, device: str) -> tuple[Call, list[Tensor]]:
    haste = importlib.import_module("haste_pytorch")
    layer = getattr(haste, case.class_name)(case.I, case.H).to(device)
    x = torch.randn(case.T, case.B, case.I, device=device, requires_grad=True)
    dy = torch.randn(case.T, case.B, case.H, device=device)
    return lambda: layer(x)[0].backward(dy), [x, *layer.parameters()]


def _flashrnn(case: Case, device: str) -> tuple[Call, list[Tensor]]:
    flashrnn = importlib.import_module("flashrnn").flashrnn
    gates, states = {"lstm": (4, 2), "gru": (3, 1)}[case.cell]

    def made(*shape: int) -> Tensor:
        return (torch.randn(*shape, device=device, dtype=torch.bfloat16) * 0.02).requires_grad_()

    x, w = made(case.B, case.T, case.I), made(gates * case.H, case.I)
    r = made(gates, 1, case.H, case.H)
    bias = made(4 if case.cell == "gru" else gates, 1, case.H)
    start = torch.zeros(states, case.B, 1, 1, case.H, device=device, dtype=torch.bfloat16)
    dy = torch.randn(case.B, case.T, 1, case.H, device=device, dtype=torch.bfloat16)

    def call() -> None:
        wx = (x @ w.t()).view(case.B, case.T, gates, 1, case.H)
        all_states, _ = flashrnn(
            wx, r, bias, states=start, function=case.cell, backend="cuda_fused", dtype="bfloat16"
        )
        all_states[0].backward(dy)

    return call, [x, w, r, bias]


PEERS = (
    Peer("FlashRNN", "flashrnn", torch.bfloat16, _flashrnn),
    Peer("haste", "haste_pytorch", torch.float32, _haste),
)


class _Work:
    def __init__(self, call: Call, leaves: list[Tensor]):
        self.call, self.leaves = call, leaves

    def prepare(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def __call__(self) -> Any:
        return self.call()


class Row(NamedTuple):
    """ratio: torch.nn's time over the peer's; above 1 the peer is faster."""

    peer: str
    case: str
    dtype: str
    torch_ms: float = float("nan")
    peer_ms: float = float("nan")
    ratio: float = float("nan")
    reason: str = ""


def installed() -> tuple[list[Peer], list[str]]:
    """Those that can be imported, and the names of the others."""
    there = [peer for peer in PEERS if importlib.util.find_spec(peer.module) is not None]
    return there, [peer.name for peer in PEERS if peer not in there]


def time_one(peer: Peer, name: str, device: str, seconds: float) -> Row:
    """Its row, with the reason where it fails."""
    case, dtype = parse(name), str(peer.dtype).removeprefix("torch.")
    try:
        reference, _ = workload.build(
            case, "torch.nn", dtype=peer.dtype, device=device, mode="train"
        )
        work = _Work(*peer.build(case, device))
        pairs = measure.alternate(reference, work, seconds, timer=measure.timer_for(device))
    except Exception as error:  # whatever a foreign kernel raises is its result
        return Row(peer.name, name, dtype, reason=f"{type(error).__name__}: {error}"[:300])
    summary = measure.Summary.of
    return Row(
        peer.name,
        name,
        dtype,
        summary(pairs.a).median * 1e3,
        summary(pairs.b).median * 1e3,
        pairs.ratio.median,
    )


def write(rows: Sequence[Row], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    table.write_text(path, text.getvalue())


def read(path: Path) -> list[Row]:
    """Of a file that `write` made; none where it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    return [
        Row(peer, case, dtype, float(torch_ms), float(peer_ms), float(ratio), reason)
        for peer, case, dtype, torch_ms, peer_ms, ratio, reason in lines
    ]


def run(context: Context, seconds: float) -> Outcome:
    """Times those that are installed; says which are missing."""
    there, missing = installed()
    absent = f"not installed: {', '.join(missing)}" if missing else ""
    if not there or context.dry_run:
        line = f"{absent}; nothing is timed in a dry run" if context.dry_run else absent
        return Outcome(MISSING, line.lstrip("; "))
    path = context.folder / "peers.csv"
    each = 0.5 * seconds / (len(there) * len(CASES))
    command = [sys.executable, "-m", "benchmarks.gpu_check.peers", "--out", str(path)]
    done = run_command(
        [*command, "--seconds", f"{each:.3g}"], seconds, context.folder / "peers.txt"
    )
    rows = read(path)
    failed = [row for row in rows if row.reason]
    line = f"{len(rows) - len(failed)} timed, {len(failed)} failed"
    state = CUT if done.code is None else OK if done.code == 0 else FAILED
    return Outcome(state, f"{line}; {absent}" if absent else line)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.peers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3, help="of each case")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args(arguments)
    there, missing = installed()
    for name in missing:
        print(f"{name}: not installed")
    rows: list[Row] = []
    for name in CASES:
        for peer in there:
            rows.append(time_one(peer, name, asked.device, asked.seconds))
            print(rows[-1], flush=True)
            write(rows, asked.out)
    return 1 if any(row.reason for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
