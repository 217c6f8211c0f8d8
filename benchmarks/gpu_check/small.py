"""A few small layers forward and backward, every strategy once: what runs under compute-sanitizer.

Prints a line for each; exit status 1 where a result is not finite or a run fails.
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

STRATEGIES = ("resident", "cluster:blocks=2", "grid:blocks=3,teams=2", "stepwise")
CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SIZE = (5, 9, 7, 24)  # T, B, I, H


def runs(device: str) -> Iterator[tuple[str, str, str]]:
    """Strategy, cell and dtype; clusters only where the device has them."""
    clusters = device != "cuda" or torch.cuda.get_device_capability() >= (9, 0)
    for strategy in STRATEGIES:
        if strategy.startswith("cluster") and not clusters:
            continue
        for cell in CELLS:
            for dtype in DTYPES:
                team = strategy.startswith(("cluster", "grid"))
                if not (team and dtype == "float32"):  # teams have no strict fp32
                    yield strategy, cell, dtype


def run(cell: str, dtype: str, device: str, backend: str) -> bool:
    """Whether everything is finite."""
    T, B, I, H = SIZE
    layer = getattr(rnnfast, CELLS[cell])(I, H, bidirectional=True).to(device, DTYPES[dtype])
    x = torch.randn(T, B, I, device=device, dtype=DTYPES[dtype], requires_grad=True)
    with rnnfast.use_backend(backend):
        y, _ = layer(x)
        y.square().sum().backward()
    leaves = [x, *layer.parameters()]
    return all(bool(t.isfinite().all()) for t in (y, *(leaf.grad for leaf in leaves)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.small")
    parser.add_argument("--executor", action="store_true", help="on the CPU, by tests/simt")
    asked = parser.parse_args(arguments)
    device, backend = "cuda", "cuda"
    scope: AbstractContextManager[Any] = nullcontext()
    if asked.executor:
        from tests.simt.backend import registered

        device, backend, scope = "cpu", "simt", registered()
    torch.manual_seed(0)
    failed = 0
    with scope:
        for strategy, cell, dtype in runs(device):
            os.environ["RNNFAST_PLAN"] = strategy
            found = _try(cell, dtype, device, backend)
            failed += found != "ok"
            print(f"{strategy} {cell} {dtype}: {found}", flush=True)
    return 1 if failed else 0


def _try(*run_of: Any) -> str:
    try:
        return "ok" if run(*run_of) else "not finite"
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
