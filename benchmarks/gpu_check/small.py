"""Small layers by each strategy, held against torch.nn in float64: what runs first on a device, and
under compute-sanitizer.

`python -m benchmarks.gpu_check.small` prints a line for each; exit status 1 where one is wrong or
fails.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import rnnfast

from .. import gate
from ..workload import LayerWork
from .checks import NO_CLUSTERS, PASSES, STRATEGIES

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SIZE = (5, 9, 7, 24)  # T, B, I, H


def runs(strategy: str, device: str) -> Iterator[tuple[str, str]]:
    """Cell and dtype; clusters only where the device has them."""
    clusters = device != "cuda" or torch.cuda.get_device_capability() >= (9, 0)
    if strategy.startswith("cluster") and not clusters:
        print(NO_CLUSTERS)
        return
    team = strategy.startswith(("cluster", "grid"))
    for cell in CELLS:
        for dtype in DTYPES:
            if not (team and dtype == "float32"):  # teams have no strict fp32
                yield cell, dtype


def works(cell: str, dtype: str, device: str, mode: str) -> tuple[LayerWork, LayerWork]:
    """torch.nn's layer and ours, of both directions, with the same weights and data."""
    T, B, I, H = SIZE
    layers = [
        getattr(of, CELLS[cell])(I, H, bidirectional=True).to(device, DTYPES[dtype])
        for of in (torch.nn, rnnfast)
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x, dy = torch.randn(T, B, I), torch.randn(T, B, 2 * H)
    made = []
    for layer in layers:
        own = x.to(device, DTYPES[dtype]).requires_grad_(mode == "train")
        made.append(LayerWork(layer, own, dy.to(own), mode))
    return made[0], made[1]


def try_one(cell: str, dtype: str, device: str, backend: str, mode: str) -> str:
    """ok, or what is wrong."""
    try:
        reference, candidate = works(cell, dtype, device, mode)
        with rnnfast.use_backend(backend):
            verdict = gate.check(reference, candidate)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return verdict.reason or "ok"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.small")
    parser.add_argument("--strategy", choices=STRATEGIES, help="default: each")
    parser.add_argument("--pass", choices=PASSES, dest="which", default="backward")
    parser.add_argument("--executor", action="store_true", help="on the CPU, by tests/simt")
    asked = parser.parse_args(arguments)
    device, backend = "cuda", "cuda"
    scope: AbstractContextManager[Any] = nullcontext()
    if asked.executor:
        from tests.simt.backend import registered

        device, backend, scope = "cpu", "simt", registered()
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # float32 is strict on both sides
    mode = "train" if asked.which == "backward" else "forward"
    failed = 0
    with scope:
        for strategy in [asked.strategy] if asked.strategy else STRATEGIES:
            os.environ["RNNFAST_PLAN"] = strategy
            for cell, dtype in runs(strategy, device):
                found = try_one(cell, dtype, device, backend, mode)
                failed += found != "ok"
                print(f"{strategy} {asked.which} {cell} {dtype}: {found}", flush=True)
                if found != "ok" and device == "cuda":
                    torch.cuda.synchronize()  # raises where the device is lost: no run after it
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
