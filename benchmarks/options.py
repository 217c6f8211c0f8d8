"""What the 18 cases leave out, against torch.nn: two layers of both directions, sequences of many
lengths, resets, 16-bit storage.

    python -m benchmarks.options [--seconds S] [--threads N] [--cases NAMES]

writes more/options.csv beside the results of the layers. torch.nn has lengths as a PackedSequence,
and so has rnnfast here; it has no resets, so the states are set to zero between calls, one for each
stretch of steps without a reset. Both sides have the same weights and are timed in one process,
alternating (measure.py), after their outputs were compared with each other.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast

from . import records
from .measure import alternate
from .workload import MODES

CELLS = ("LSTM", "GRU", "RNN")
RAGGED_T = 4000


@dataclass(frozen=True)
class Row:
    """A case; the ratio is torch.nn's time to rnnfast's, the median over pairs."""

    case: str
    cell: str
    mode: str
    torch_ms: float
    rnnfast_ms: float
    ratio: float
    ratio_low: float  # where the median may lie, 95 %
    ratio_high: float


Call = Callable[[Any], Any]  # of a layer: its output, as data


@dataclass
class Work:
    """A call of a layer, with backward in training."""

    layer: nn.Module
    call: Call
    mode: str

    def prepare(self) -> None:
        self.layer.zero_grad(set_to_none=True)

    def __call__(self) -> Tensor:
        if self.mode == "forward":
            with torch.no_grad():
                return self.data()
        y = self.data()
        y.sum().backward()
        return y

    def data(self) -> Tensor:
        found = self.call(self.layer)
        data: Tensor = found.data if isinstance(found, PackedSequence) else found
        return data


@dataclass(frozen=True)
class Case:
    """Sizes and options of a layer, and a call by torch.nn and by rnnfast."""

    sizes: tuple[int, int]
    options: dict[str, Any]
    dtype: torch.dtype
    torch: Call
    rnnfast: Call


def both_directions() -> Case:
    x = torch.randn(100, 32, 128)
    call: Call = lambda layer: layer(x)[0]  # noqa: E731
    options = {"num_layers": 2, "bidirectional": True}
    return Case((128, 128), options, torch.float32, call, call)


def ragged() -> Case:
    """Sixteen sequences of 250, 500, ... 4,000 steps."""
    lengths = torch.arange(1, 17) * (RAGGED_T // 16)
    x = torch.randn(RAGGED_T, 16, 64)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    call: Call = lambda layer: layer(packed)[0]  # noqa: E731
    return Case((64, 128), {}, torch.float32, call, call)


def with_resets(dtype: torch.dtype = torch.float32) -> Case:
    """32 episodes side by side, each of 50 steps in the middle, as agents are trained on."""
    T, B = 128, 32
    x, resets = torch.randn(T, B, 64, dtype=dtype), torch.rand(T, B) < 1 / 50
    begins = [t for t in range(T) if t == 0 or bool(resets[t].any())]
    keep = (~resets).to(x.dtype)

    def by_stretches(layer: Any) -> Tensor:
        pieces, states = [], None
        for t, end in zip(begins, [*begins[1:], T], strict=True):
            if states is not None:
                mask = keep[t][None, :, None]
                one = isinstance(states, Tensor)
                states = states * mask if one else tuple(s * mask for s in states)
            y, states = layer(x[t:end], states)
            pieces.append(y)
        return torch.cat(pieces)

    at_once: Call = lambda layer: layer(x, resets=resets)[0]  # noqa: E731
    return Case((64, 128), {}, dtype, by_stretches, at_once)


def in_16_bit(dtype: torch.dtype) -> Case:
    x = torch.randn(100, 64, 256).to(dtype)
    call: Call = lambda layer: layer(x)[0]  # noqa: E731
    return Case((256, 256), {}, dtype, call, call)


CASES: dict[str, Callable[[], Case]] = {
    "two layers, both directions, T100 B32 I128 H128": both_directions,
    f"lengths to {RAGGED_T:,}, B16 I64 H128": ragged,
    "resets, T128 B32 I64 H128": with_resets,
    "bfloat16, T100 B64 I256 H256": lambda: in_16_bit(torch.bfloat16),
    "float16, T100 B64 I256 H256": lambda: in_16_bit(torch.float16),
}


def compare(names: Sequence[str], seconds: float) -> Iterator[Row]:
    """Raises AssertionError where the outputs differ."""
    for name in names:
        torch.manual_seed(0)
        case = CASES[name]()
        for cell in CELLS:
            reference = getattr(nn, cell)(*case.sizes, **case.options).to(case.dtype)
            layer = getattr(rnnfast, cell)(*case.sizes, **case.options).to(case.dtype)
            layer.load_state_dict(reference.state_dict())
            for mode in MODES:
                sides = Work(reference, case.torch, mode), Work(layer, case.rnnfast, mode)
                with torch.no_grad():
                    check(*(side.data() for side in sides))
                pairs = alternate(*sides, seconds)
                times = [statistics.median(side) * 1e3 for side in (pairs.a, pairs.b)]
                ratio = pairs.ratio
                yield Row(name, cell, mode, *times, ratio.median, ratio.low, ratio.high)


def check(theirs: Tensor, ours: Tensor) -> None:
    """By their dtype: outputs are at most 1."""
    allowed = 64 * torch.finfo(theirs.dtype).eps
    error = float((theirs.double() - ours.double()).abs().max())
    assert error <= allowed, f"the outputs differ by {error:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.options")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", default="", help="parts of their names, separated by ';'")
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    chosen = [name for name in CASES if any(part in name for part in args.cases.split(";"))]
    if not chosen:
        parser.error(f"no case has {args.cases!r} in its name; there are {'; '.join(CASES)}")
    facts = records.facts("cpu", args.threads, seconds=args.seconds)
    rows = []
    for row in compare(chosen, args.seconds):
        rows.append(row)
        print(
            f"{row.case:50}{row.cell:6}{row.mode:9}{row.torch_ms:9.2f} ms{row.rnnfast_ms:9.2f} ms"
            f"  x {row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]",
            flush=True,
        )
    path = args.out or records.folder("cpu", args.threads) / "options.csv"
    records.write(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
