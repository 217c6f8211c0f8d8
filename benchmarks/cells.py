"""Cells of one's own against the built-in ones, torch.nn and other ways to run a step, on the CPU.

    python -m benchmarks.cells [--seconds S] [--threads N] [--compile-limit S]

A call is forward and backward. Each pair is timed in one process, alternating (measure.py); what
is printed is the time of the first, and the ratio of the second's time to it. Peers (cell_peers.py)
are those that are installed and compile within the limit; torch.compile takes minutes for a loop.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

import rnnfast
from rnnfast import library
from rnnfast.cells import CELLS
from rnnfast.steps.source import source

from .cell_peers import Call, peers
from .machine import cpu_model
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


def compare(size: Size, seconds: float, limit: float, show: Callable[[str], Any] = print) -> None:
    x = torch.randn(size.T, size.B, size.I)
    made = layers(size)
    calls: dict[str, Any] = {
        name: Call(layer, x, backend) for name, (layer, backend) in made.items()
    }
    show(f"{size}, forward + backward")
    for first, second in PAIRS:
        _compare((first, calls[first]), (second, calls[second]), seconds, show)
    for first in WITH_PEERS:
        layer = made[first][0]
        assert isinstance(layer, rnnfast.Recurrent)
        for name, call in peers(layer, x, limit, show):
            _compare((first, calls[first]), (name, call), seconds, show)


def _compare(
    first: tuple[str, Any], second: tuple[str, Any], seconds: float, show: Callable[[str], Any]
) -> None:
    pairs = alternate(second[1], first[1], seconds)
    ms, ratio = statistics.median(pairs.b) * 1e3, pairs.ratio
    interval = f"[{ratio.low:.3f}, {ratio.high:.3f}]"
    show(f"  {first[0]:28} {ms:9.3f} ms   {second[0]:28} x {ratio.median:.3f} {interval}")


def compile_times() -> None:
    """Of the family: making the source, compiling it (once on a machine), loading it again."""
    print("seconds to make the source, to compile it or load it, and to load it when it is kept")
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
        took = (made - start, loaded - made, time.perf_counter() - again)
        print(f"  {name:20}" + "".join(f"{seconds:9.3f}" for seconds in took))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cells")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pair")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile-limit", type=float, default=60.0, help="seconds that a peer may compile"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    print(f"{cpu_model()}, {args.threads} threads, torch {torch.__version__}, load {load:.1f}")
    compile_times()
    for size in SIZES:
        compare(size, args.seconds, args.compile_limit)


if __name__ == "__main__":
    main()
