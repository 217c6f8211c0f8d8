"""Cells of one's own against the built-in ones and against a loop in plain torch, on the CPU.

    python -m benchmarks.cells [--seconds S] [--threads N]

A call is forward and backward. Each pair is timed in one process, alternating (measure.py); what
is printed is the time of the first, and the ratio of the second's time to it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rnnfast
from rnnfast import library
from rnnfast.cells.gru import gru
from rnnfast.cells.lstm import lstm
from rnnfast.steps.source import source

from .machine import cpu_model
from .measure import alternate

OWN_LSTM = rnnfast.cell(lstm, gates=4, states=("h", "c"), name="benchmark:lstm")
OWN_GRU = rnnfast.cell(gru, gates=3, name="benchmark:gru")


class Size(NamedTuple):
    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T} B{self.B} I{self.I} H{self.H}"


SIZES = (Size(50, 32, 128, 256), Size(50, 1, 128, 256), Size(200, 8, 64, 128))


class Call:
    """Forward and backward of one layer, by one backend."""

    def __init__(self, layer: nn.Module, x: Tensor, backend: str) -> None:
        self.layer, self.x, self.backend = layer, x, backend
        self.loss_gradient: Tensor | None = None

    def prepare(self) -> None:
        self.layer.zero_grad(set_to_none=True)

    def __call__(self) -> None:
        with rnnfast.use_backend(self.backend):
            y = self.layer(self.x)[0]
            if self.loss_gradient is None:
                self.loss_gradient = torch.ones_like(y)
            y.backward(self.loss_gradient)


class EagerLoop(nn.Module):
    """What a user writes today: the step in a Python loop, the input projected at once."""

    def __init__(self, layer: rnnfast.Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor]:
        layer = self.layer
        w = {n: getattr(layer, f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        extra = {p.name: getattr(layer, f"{p.name}_l0") for p in layer.cell.params}
        weights = rnnfast.cells.StepWeights(w["weight_hh"], w["bias_hh"], None, extra)
        states = tuple(x.new_zeros(x.shape[1], layer.hidden_size) for _ in layer.cell.states)
        outputs = []
        for gx in F.linear(x, w["weight_ih"], w["bias_ih"]).unbind(0):
            states = layer.cell.step(gx, states, weights)
            outputs.append(states[0])
        return (torch.stack(outputs),)


def layers(size: Size) -> dict[str, tuple[nn.Module, str]]:
    I, H = size.I, size.H
    made = {
        "LSTM built in": (rnnfast.LSTM(I, H), "cpu"),
        "LSTM as a cell of one's own": (rnnfast.Recurrent(OWN_LSTM, I, H), "cpu"),
        "LSTM of torch.nn": (nn.LSTM(I, H), "cpu"),
        "GRU built in": (rnnfast.GRU(I, H), "cpu"),
        "GRU as a cell of one's own": (rnnfast.Recurrent(OWN_GRU, I, H), "cpu"),
        "LayerNorm-LSTM": (rnnfast.LayerNormLSTM(I, H, bias=True), "cpu"),
    }
    for name, of in (
        ("LSTM, eager loop", "LSTM as a cell of one's own"),
        ("LayerNorm-LSTM, eager loop", "LayerNorm-LSTM"),
    ):
        made[name] = (EagerLoop(made[of][0]), "cpu")  # type: ignore[arg-type]
    return made


PAIRS = (
    ("LSTM built in", "LSTM as a cell of one's own"),
    ("GRU built in", "GRU as a cell of one's own"),
    ("LSTM built in", "LayerNorm-LSTM"),
    ("LSTM built in", "LSTM of torch.nn"),
    ("LSTM as a cell of one's own", "LSTM, eager loop"),
    ("LayerNorm-LSTM", "LayerNorm-LSTM, eager loop"),
)


def compare(size: Size, seconds: float, show: Callable[[str], Any] = print) -> None:
    x = torch.randn(size.T, size.B, size.I)
    calls = {name: Call(layer, x, backend) for name, (layer, backend) in layers(size).items()}
    show(f"{size}, forward + backward")
    for first, second in PAIRS:
        pairs = alternate(calls[second], calls[first], seconds)
        ms, ratio = statistics.median(pairs.b) * 1e3, pairs.ratio
        interval = f"[{ratio.low:.3f}, {ratio.high:.3f}]"
        show(f"  {first:28} {ms:9.3f} ms   {second:28} x {ratio.median:.3f} {interval}")


def compile_times(show: Callable[[str], Any] = print) -> None:
    """Of the family: making the source, compiling it (once on a machine), loading it again."""
    show("seconds to make the source, to compile it or load it, and to load it when it is kept")
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
        show(f"  {name:20}" + "".join(f"{seconds:9.3f}" for seconds in took))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cells")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pair")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{cpu_model()}, {args.threads} threads, torch {torch.__version__}")
    compile_times()
    for size in SIZES:
        compare(size, args.seconds)


if __name__ == "__main__":
    main()
