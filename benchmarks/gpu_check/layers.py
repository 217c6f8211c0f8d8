"""Layers on top of one another against torch.nn: one after the other, and pipelined in parts of
several lengths (RNNFAST_PIPELINE, docs/cuda.md)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rnnfast

from .. import measure
from ..cases import Case, parse
from .rows import Row, write
from .timing import PARTS

LAYERS = 4


class _Training:
    """Forward and backward of a stack; `parts`: its RNNFAST_PIPELINE."""

    def __init__(self, layer: torch.nn.Module, x: Tensor, parts: int) -> None:
        self.layer: Any = layer
        self.x, self.parts = x, parts

    def prepare(self) -> None:
        self.layer.zero_grad(set_to_none=True)

    def __call__(self) -> Any:
        with _pipeline(self.parts):
            y, _ = self.layer(self.x)
            y.sum().backward()


@contextmanager
def _pipeline(parts: int) -> Iterator[None]:
    before = os.environ.get("RNNFAST_PIPELINE")
    os.environ["RNNFAST_PIPELINE"] = str(parts)
    try:
        yield
    finally:
        if before is None:
            del os.environ["RNNFAST_PIPELINE"]
        else:
            os.environ["RNNFAST_PIPELINE"] = before


def time_one(case: Case, parts: int, device: str, backend: str, seconds: float) -> Row:
    """Its row, with the reason where it fails. In bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    facts = (_name(parts, ""), case.name, str(dtype).removeprefix("torch."))
    sizes: tuple[Any, ...] = (case.I, case.H, LAYERS)
    try:
        x = torch.randn(case.T, case.B, case.I, device=device, dtype=dtype)
        reference, ours = (
            _Training(getattr(of, case.class_name)(*sizes, device=device, dtype=dtype), x, parts)
            for of in (torch.nn, rnnfast)
        )
        with rnnfast.use_backend(backend):
            with _pipeline(parts):
                facts = (_name(parts, rnnfast.explain(ours.layer, x).layers), *facts[1:])
            pairs = measure.alternate(reference, ours, seconds, timer=measure.timer_for(device))
    except Exception as error:  # what a size or device can't do is its result
        return Row(*facts, reason=f"{type(error).__name__}: {error}"[:300])
    summary = measure.Summary.of
    medians = (summary(pairs.a).median * 1e3, summary(pairs.b).median * 1e3)
    return Row(*facts, *medians, pairs.ratio.median)


def _name(parts: int, explained: str) -> str:
    if parts == 0:
        return f"{LAYERS} layers"
    reason = explained.partition("not pipelined: ")[2]
    note = "" if explained.startswith("layers pipelined") else f" (not pipelined: {reason or '-'})"
    return f"{LAYERS} layers, parts of {parts}{note}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.layers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3, help="of each row")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--case", required=True)
    asked = parser.parse_args(arguments)
    backend = "cuda" if asked.device.startswith("cuda") else "cpu"
    rows: list[Row] = []
    for parts in PARTS:
        rows.append(time_one(parse(asked.case), parts, asked.device, backend, asked.seconds))
        print(rows[-1], flush=True)
        write(rows, asked.out)
        if rows[-1].reason and asked.device.startswith("cuda"):
            torch.cuda.synchronize()  # raises where the device is lost: no row after it
    return 1 if any(row.reason for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
