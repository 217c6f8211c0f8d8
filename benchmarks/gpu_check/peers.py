"""Other recurrent kernels, where they are installed: timed against torch.nn (cuDNN) in pairs.

`python -m benchmarks.gpu_check.peers --out peers.csv` prints a line for each. A peer's numbers are
its own layer's: its weights differ, so only times are compared.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import measure, workload
from ..cases import Case, parse
from .rows import Row, write
from .timing import PEER_CASES, installed

Call = Callable[[], Any]


class Peer(NamedTuple):
    """dtype: that its kernels take. build(case, device) -> a call, forward and backward, and the
    leaves in which it leaves gradients."""

    name: str
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
    Peer("FlashRNN", torch.bfloat16, _flashrnn),
    Peer("haste", torch.float32, _haste),
)


class _Work:
    def __init__(self, call: Call, leaves: list[Tensor]):
        self.call, self.leaves = call, leaves

    def prepare(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def __call__(self) -> Any:
        return self.call()


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
    for name in PEER_CASES:
        for peer in (peer for peer in PEERS if peer.name in there):
            rows.append(time_one(peer, name, asked.device, asked.seconds))
            print(rows[-1], flush=True)
            write(rows, asked.out)
    return 1 if any(row.reason for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
