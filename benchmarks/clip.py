"""clip_grad_norm_ against torch.nn.utils', in alternating pairs:

    python -m benchmarks.clip [--device cpu] [--threads N] [--seconds 10]

writes more/clip.csv beside the results of the layers. "clips" scales the gradients at every call;
where the norm is below max_norm ("keeps") the kernels write nothing, and torch multiplies by 1.

Bytes are counted, not measured. The least: each gradient is read once for the norm; where it is
scaled, it is read and written once more. What a cache still holds of the first reading makes it
less. torch reads and writes for the scale in any case.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rnnfast

from . import records
from .measure import Pairs, Summary, alternate, timer_for

TENSORS: dict[str, list[int]] = {
    "1 x 50,000,000": [50_000_000],
    "2,000 x 64": [64] * 2000,
    "2,000 x 1,024": [1024] * 2000,
    "10,000 x 16": [16] * 10_000,
    "LSTM 2 x 512": [4 * 512 * 512, 4 * 512 * 512, 4 * 512, 4 * 512] * 2,
    "10 x 1,000": [1000] * 10,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Clip = Callable[[list[nn.Parameter], float], Any]


@dataclass(frozen=True)
class Row:
    """One list of gradients; times in milliseconds."""

    tensors: str
    dtype: str
    scale: str  # clips | keeps
    pairs: int
    torch_ms: float
    rnnfast_ms: float
    ratio: float  # torch / rnnfast, median over pairs
    ratio_low: float  # where the median may lie, 95 %
    ratio_high: float
    least_bytes: int
    torch_bytes: int
    gb_per_s: float  # least_bytes over rnnfast's time


SHRINK = 0.9999  # of max_norm, from one call to the next


class Work:
    """One function on gradients of its own. ``keep``: below max_norm, and never scaled."""

    def __init__(self, clip: Clip, sizes: list[int], dtype: torch.dtype, device: str, keep: bool):
        self.clip, self.max_norm = clip, 1e30 if keep else 1.0
        self.parameters = [nn.Parameter(torch.empty(n, dtype=dtype, device=device)) for n in sizes]
        generator = torch.Generator(device).manual_seed(0)
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter).normal_(generator=generator)

    def prepare(self) -> None:
        """Else a gradient that was clipped stays as it is: its norm is max_norm already."""
        self.max_norm *= SHRINK

    def __call__(self) -> object:
        return self.clip(self.parameters, self.max_norm)


def check(a: Work, b: Work) -> None:
    """No time is reported of results that differ. Raises AssertionError."""
    norms = [work().float() for work in (a, b)]
    torch.testing.assert_close(*norms, rtol=2e-2, atol=0)
    for one, other in zip(a.parameters[:10], b.parameters[:10], strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=4e-2, atol=1e-6)


def measure(name: str, dtype: str, keep: bool, device: str, seconds: float) -> Row:
    sizes, kind = TENSORS[name], DTYPES[dtype]
    torchs = Work(nn.utils.clip_grad_norm_, sizes, kind, device, keep)
    ours = Work(rnnfast.clip_grad_norm_, sizes, kind, device, keep)
    check(torchs, ours)
    pairs: Pairs = alternate(torchs, ours, seconds, timer=timer_for(device))
    once = sum(sizes) * kind.itemsize
    least = once if keep else 3 * once
    median = Summary.of(pairs.b).median
    return Row(
        name,
        dtype,
        "keeps" if keep else "clips",
        len(pairs.a),
        Summary.of(pairs.a).median * 1e3,
        median * 1e3,
        pairs.ratio.median,
        pairs.ratio.low,
        pairs.ratio.high,
        least,
        3 * once,
        least / median / 1e9,
    )


def line(row: Row) -> str:
    return (
        f"{row.tensors:16} {row.dtype:9} {row.scale:6} {row.pairs:6d} {row.torch_ms:10.3f} "
        f"{row.rnnfast_ms:10.3f} {row.ratio:7.2f} {row.ratio_low:7.2f}…{row.ratio_high:<7.2f}"
        f"{row.gb_per_s:7.1f} GB/s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    parser.add_argument("--only", default="", help="lists with this in their name")
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this device")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    facts = records.facts(options.device, options.threads, seconds=options.seconds)
    rows = []
    for name in TENSORS:
        if options.only in name:
            for dtype in DTYPES:
                for keep in (False, True):
                    rows.append(measure(name, dtype, keep, options.device, options.seconds))
                    print(line(rows[-1]), flush=True)
    path = options.out or records.folder(options.device, options.threads) / "clip.csv"
    records.write(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
