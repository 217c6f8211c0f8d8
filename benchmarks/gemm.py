"""Our product of large matrices against torch's, and both against what the processor can do.

    python -m benchmarks.gemm [--seconds S] [--threads N]

writes more/gemm.csv beside the results of the layers. The shapes are a large one with its
transposes, and what the layers of the cases need: the input's projection, the gradients of both
weights and of the input. Each pair is timed in one process, alternating (measure.py). The peak is
that of multiply-adds in registers, measured by the same program before and after. Whether a sum is
right is what tests are for.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnfast import _ext

from . import records
from .cases import GATES, SIZES
from .measure import alternate
from .roofs import multiply_adds


class Product(NamedTuple):
    """left [M, K] @ right [K, N], with ``row`` added to each row where there is one."""

    group: str
    what: str
    left: Tensor
    right: Tensor
    row: Tensor | None = None

    @property
    def flops(self) -> float:
        return 2.0 * self.left.shape[0] * self.left.shape[1] * self.right.shape[1]


@dataclass(frozen=True)
class Row:
    """A product of [M, K] and [K, N]."""

    group: str  # what needs it
    what: str
    M: int
    K: int
    N: int
    torch_gflops: float
    ours_gflops: float
    ratio: float  # torch's time over ours, median over pairs
    ratio_low: float  # where the median may lie, 95 %
    ratio_high: float


class Work:
    """One call, for measure.py."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def prepare(self) -> None:
        pass

    def __call__(self) -> Any:
        return self._call()


def large() -> Iterator[Product]:
    left, right = torch.randn(3200, 512), torch.randn(2048, 512)
    sums = torch.randn(3200, 2048)
    name = "M3200 K512 N2048"
    yield Product(name, "itself", left, right.t())
    yield Product(name, "its left's gradient", sums, right)
    yield Product(name, "its right's gradient", sums.t(), left)


def of_layers() -> Iterator[Product]:
    """What T steps of B sequences need outside the loop, of a layer of G gates."""
    for T, B, I, H in SIZES:
        for G in dict.fromkeys(GATES.values()):
            name = f"T{T} B{B} I{I} H{H} G{G}"
            x, dgates, h = torch.randn(T * B, I), torch.randn(T * B, G * H), torch.randn(T * B, H)
            weight, bias = torch.randn(G * H, I), torch.randn(G * H)
            yield Product(name, "input", x, weight.t(), bias)
            yield Product(name, "dW_ih", dgates.t(), x)
            yield Product(name, "dW_hh", dgates.t(), h)
            yield Product(name, "dx", dgates, weight)


def compare(product: Product, seconds: float) -> Row:
    module: Any = _ext.cpu()
    group, what, left, right, row = product

    def theirs() -> Tensor:
        return left @ right if row is None else torch.addmm(row, left, right)

    pairs = alternate(Work(theirs), Work(lambda: module.cpu_product(left, right, row=row)), seconds)
    torchs, ours = (product.flops / statistics.median(times) / 1e9 for times in (pairs.a, pairs.b))
    ratio, sizes = pairs.ratio, (*left.shape, right.shape[1])
    return Row(group, what, *sizes, torchs, ours, ratio.median, ratio.low, ratio.high)


def line(row: Row, peak: float) -> str:
    found = f"{row.group:26}{row.what:22}{f'{row.M}x{row.K}x{row.N}':>18}"
    for rate in (row.torch_gflops, row.ours_gflops):
        found += f"{rate:8.1f} ({rate / peak:4.0%})"
    return f"{found}{row.ratio:8.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gemm")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each product")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    facts = records.facts("cpu", args.threads, seconds=args.seconds)
    before = multiply_adds(args.threads) / 1e9
    print(f"peak {before:.0f} GF/s\n{'':48}{'M x K x N':>18}{'torch GF/s':>15}{'ours':>15}   ratio")
    rows = []
    for product in (*large(), *of_layers()):
        rows.append(compare(product, args.seconds))
        print(line(rows[-1], before), flush=True)
    peaks = [round(peak, 1) for peak in (before, multiply_adds(args.threads) / 1e9)]
    path = args.out or records.folder("cpu", args.threads) / "gemm.csv"
    records.write(path, rows, {**facts, "peak_gflops": max(peaks), "peaks": peaks})
    print(path)


if __name__ == "__main__":
    main()
