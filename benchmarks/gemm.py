"""Our product of large matrices against torch's, and both against what the processor can do.

    python -m benchmarks.gemm [--seconds S] [--threads N]

The shapes are a large one with its transposes, and what the layers of the cases need: the input's
projection, the gradients of both weights and of the input. Each pair is timed in one process,
alternating (measure.py). The peak is that of multiply-adds in registers, measured by the same
program before and after. Whether a sum is right is what tests are for.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnfast import _ext

from .cases import GATES, SIZES
from .machine import cpu_model
from .measure import alternate
from .roofs import multiply_adds


class Product(NamedTuple):
    """left [M, K] @ right [K, N], with ``row`` added to each row where there is one."""

    name: str
    left: Tensor
    right: Tensor
    row: Tensor | None = None

    @property
    def flops(self) -> float:
        return 2.0 * self.left.shape[0] * self.left.shape[1] * self.right.shape[1]

    @property
    def sizes(self) -> str:
        return f"{self.left.shape[0]}x{self.left.shape[1]}x{self.right.shape[1]}"


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
    yield Product("M3200 K512 N2048", left, right.t())
    yield Product("its left's gradient", sums, right)
    yield Product("its right's gradient", sums.t(), left)


def of_layers() -> Iterator[Product]:
    """What T steps of B sequences need outside the loop, of a layer of G gates."""
    for T, B, I, H in SIZES:
        for G in dict.fromkeys(GATES.values()):
            name = f"T{T} B{B} I{I} H{H} G{G}"
            x, dgates, h = torch.randn(T * B, I), torch.randn(T * B, G * H), torch.randn(T * B, H)
            weight, bias = torch.randn(G * H, I), torch.randn(G * H)
            yield Product(f"{name} input", x, weight.t(), bias)
            yield Product(f"{name} dW_ih", dgates.t(), x)
            yield Product(f"{name} dW_hh", dgates.t(), h)
            yield Product(f"{name} dx", dgates, weight)


def compare(product: Product, seconds: float, top: float) -> tuple[float, str]:
    """Torch's time over ours, and a line."""
    module: Any = _ext.cpu()
    _, left, right, row = product

    def theirs() -> Tensor:
        return left @ right if row is None else torch.addmm(row, left, right)

    pairs = alternate(Work(theirs), Work(lambda: module.cpu_product(left, right, row=row)), seconds)
    rates = [product.flops / statistics.median(times) for times in (pairs.a, pairs.b)]
    ratio = pairs.ratio
    line = f"{product.name:28}{product.sizes:>18}"
    line += "".join(f"{rate / 1e9:8.1f} ({rate / top:4.0%})" for rate in rates)
    return ratio.median, f"{line}{ratio.median:8.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gemm")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each product")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module: Any = _ext.cpu()
    top, load = multiply_adds(args.threads), os.getloadavg()[0]
    print(
        f"{cpu_model()}, {module.cpu_isa()}, {args.threads} threads, torch {torch.__version__}, "
        f"load {load:.1f}; peak {top / 1e9:.0f} GF/s"
    )
    print(f"{'':28}{'M x K x N':>18}{'torch GF/s':>15}{'ours':>15}   torch's time / ours")
    ratios = []
    for product in (*large(), *of_layers()):
        ratio, line = compare(product, args.seconds, top)
        ratios.append(ratio)
        print(line, flush=True)
    print(
        f"geometric mean {statistics.geometric_mean(ratios):.3f}, least {min(ratios):.3f}; "
        f"peak after it {multiply_adds(args.threads) / 1e9:.0f} GF/s"
    )


if __name__ == "__main__":
    main()
