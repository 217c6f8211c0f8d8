"""Cells of one's own against the built-in ones, torch.nn and other ways to run a step, on the CPU.

    python -m benchmarks.cells [--seconds S] [--threads N] [--compile-limit S]

writes more/cells.csv and more/compile.csv beside the results of the layers. A call is forward and
backward. Each pair is timed in one process, alternating (measure.py); what is told is the time of
the first, and the ratio of the second's time to it. Peers (cell_peers.py) are those that are
installed and compile within the limit; torch.compile takes minutes for a loop.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import rnnfast
from rnnfast import library
from rnnfast.cells import CELLS
from rnnfast.steps.source import source

from . import records
from .cell_peers import Call, peers
from .measure import alternate

STATED = {  # built-in cells' steps as cells of one's own
    name: rnnfast.cell(spec.step, gates=spec.gates, states=spec.states, name=f"benchmark:{name}")
    for name, spec in CELLS.copy().items()
    if name in ("lstm", "gru", "rnn_tanh", "mgu")
}


class Size(NamedTuple):
    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T} B{self.B} I{self.I} H{self.H}"


SIZES = (Size(50, 32, 128, 256), Size(50, 1, 128, 256), Size(200, 8, 64, 128))


def layers(size: Size) -> dict[str, tuple[nn.Module, str]]:
    I, H = size.I, size.H
    return {
        "LSTM built in": (rnnfast.LSTM(I, H), "cpu"),
        "LSTM as a cell of one's own": (rnnfast.Recurrent(STATED["lstm"], I, H), "cpu"),
        "LSTM of torch.nn": (nn.LSTM(I, H), "cpu"),
        "GRU built in": (rnnfast.GRU(I, H), "cpu"),
        "GRU as a cell of one's own": (rnnfast.Recurrent(STATED["gru"], I, H), "cpu"),
        "RNN built in": (rnnfast.RNN(I, H), "cpu"),
        "RNN as a cell of one's own": (rnnfast.Recurrent(STATED["rnn_tanh"], I, H), "cpu"),
        "MGU built in": (rnnfast.MGU(I, H), "cpu"),
        "MGU as a cell of one's own": (rnnfast.Recurrent(STATED["mgu"], I, H), "cpu"),
        "LayerNorm-LSTM": (rnnfast.LayerNormLSTM(I, H, bias=True), "cpu"),
    }


PAIRS = (
    ("LSTM built in", "LSTM as a cell of one's own"),
    ("GRU built in", "GRU as a cell of one's own"),
    ("RNN built in", "RNN as a cell of one's own"),
    ("MGU built in", "MGU as a cell of one's own"),
    ("LSTM built in", "LayerNorm-LSTM"),
    ("LSTM built in", "LSTM of torch.nn"),
)
WITH_PEERS = ("LSTM as a cell of one's own", "LayerNorm-LSTM")


@dataclass(frozen=True)
class Row:
    """A pair at a size, or why there is none."""

    size: str
    first: str
    second: str
    first_ms: float = math.nan
    ratio: float = math.nan  # the second's time over the first's, median over pairs
    ratio_low: float = math.nan  # where the median may lie, 95 %
    ratio_high: float = math.nan
    reason: str = ""  # of a peer that was not timed


@dataclass(frozen=True)
class Compiled:
    """Seconds that a cell takes, of a process's own: the source, compiling it, loading it again."""

    cell: str
    source_s: float
    compile_s: float
    load_s: float


def compare(size: Size, seconds: float, limit: float) -> Iterator[Row]:
    x = torch.randn(size.T, size.B, size.I)
    made = layers(size)
    calls = {name: Call(layer, x, backend) for name, (layer, backend) in made.items()}
    for first, second in PAIRS:
        yield _timed(size, (first, calls[first]), (second, calls[second]), seconds)
    for first in WITH_PEERS:
        layer = made[first][0]
        assert isinstance(layer, rnnfast.Recurrent)
        for name, call, reason in peers(layer, x, limit):
            if call is None:
                yield Row(str(size), first, name, reason=reason)
            else:
                yield _timed(size, (first, calls[first]), (name, call), seconds)


def _timed(size: Size, first: tuple[str, Any], second: tuple[str, Any], seconds: float) -> Row:
    pairs = alternate(second[1], first[1], seconds)
    ms, ratio = statistics.median(pairs.b) * 1e3, pairs.ratio
    return Row(str(size), first[0], second[0], ms, ratio.median, ratio.low, ratio.high)


def line(row: Row) -> str:
    pair = f"{row.size:24} {row.first:28} {row.second:28}"
    if row.reason:
        return f"{pair} {row.reason}"
    interval = f"[{row.ratio_low:.3f}, {row.ratio_high:.3f}]"
    return f"{pair} {row.first_ms:9.3f} ms   x {row.ratio:.3f} {interval}"


def compile_times() -> Iterator[Compiled]:
    """Of some of the family, in an empty cache."""
    for name in ("peephole_lstm", "layer_norm_lstm", "slstm", "block_gru"):
        spec = rnnfast.CELLS[name]
        start = time.perf_counter()
        text = source(spec, 256, True, torch.float32).text
        made = time.perf_counter()
        library.load(text, name=name)
        loaded = time.perf_counter()
        library.forget()
        again = time.perf_counter()
        library.load(text, name=name)
        yield Compiled(name, made - start, loaded - made, time.perf_counter() - again)


@contextmanager
def empty_cache() -> Iterator[None]:
    """Of compiled cells, for a while."""
    before = os.environ.get("RNNFAST_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RNNFAST_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["RNNFAST_CACHE"]
            if before is not None:
                os.environ["RNNFAST_CACHE"] = before


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cells")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile-limit", type=float, default=60.0, help="seconds that a peer may compile"
    )
    parser.add_argument("--out", type=Path, help="a folder; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    folder = args.out or records.folder("cpu", args.threads)
    facts = records.facts("cpu", args.threads, seconds=args.seconds, limit=args.compile_limit)
    compiled, rows = [], []
    with empty_cache():
        for times in compile_times():
            compiled.append(times)
            print(times, flush=True)
    records.write(folder / "compile.csv", compiled, facts)
    for size in SIZES:
        for row in compare(size, args.seconds, args.compile_limit):
            rows.append(row)
            print(line(row), flush=True)
    records.write(folder / "cells.csv", rows, facts)
    print(folder)


if __name__ == "__main__":
    main()
