"""Layers that were exported to ONNX, run by ONNX Runtime, against the layers themselves.

    python -m benchmarks.exported [--seconds S] [--threads N]

writes more/exported.csv beside the results of the layers. Needs the packages of the extra
deploy-tests. Both are timed in one process, alternating (measure.py), after their outputs were
compared. A call is forward alone.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rnnfast

from . import records
from .measure import alternate

T, B, I, H = 100, 8, 64, 128
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "`LSTM`": (rnnfast.LSTM, {}),
    "`GRU`": (rnnfast.GRU, {}),
    f"`LSTM(proj_size={H // 2})`": (rnnfast.LSTM, {"proj_size": H // 2}),
    "`MGU`": (rnnfast.MGU, {}),
    "`LayerNormLSTM`": (rnnfast.LayerNormLSTM, {}),
}


@dataclass(frozen=True)
class Row:
    layer: str
    onnx_ms: float
    rnnfast_ms: float
    ratio: float  # of ONNX Runtime's time to the layer's, median over pairs
    ratio_low: float  # where the median may lie, 95 %
    ratio_high: float


class Layer:
    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        self.layer, self.x = layer, x

    def prepare(self) -> None:
        pass

    def __call__(self) -> Tensor:
        y: Tensor = self.layer(self.x)[0]
        return y


class Exported:
    """What ONNX Runtime makes of the layer, on as many threads as torch has."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        import onnxruntime

        program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
        assert program is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), options
        )
        self.feed = {self.session.get_inputs()[0].name: x.numpy()}

    def prepare(self) -> None:
        pass

    def __call__(self) -> Any:
        return self.session.run(None, self.feed)[0]


def check(theirs: Exported, ours: Layer) -> None:
    """Against float64: twice as far off as the layer is allowed, and 1e-5. (LayerNorm loses digits
    from step to step.) Raises AssertionError."""
    exact = copy.deepcopy(ours.layer).double()(ours.x.double())[0]
    errors = [float((y - exact).abs().max()) for y in (torch.from_numpy(theirs()), ours())]
    assert errors[0] <= 2 * errors[1] + 1e-5, (
        f"off by {errors[0]:.1e}, the layer by {errors[1]:.1e}"
    )


def compare(seconds: float) -> Iterator[Row]:
    """Raises AssertionError where the outputs differ."""
    for name, (kind, options) in LAYERS.items():
        torch.manual_seed(0)
        layer, x = kind(I, H, **options).eval(), torch.randn(T, B, I)
        with torch.no_grad():
            theirs, ours = Exported(layer, x), Layer(layer, x)
            check(theirs, ours)
            pairs = alternate(theirs, ours, seconds)
        times = [statistics.median(side) * 1e3 for side in (pairs.a, pairs.b)]
        ratio = pairs.ratio
        yield Row(name, *times, ratio.median, ratio.low, ratio.high)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exported")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each layer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    facts = records.facts("cpu", args.threads, seconds=args.seconds)
    rows = []
    for row in compare(args.seconds):
        rows.append(row)
        print(
            f"{row.layer:22}{row.onnx_ms:9.2f} ms{row.rnnfast_ms:9.2f} ms  x {row.ratio:.2f} "
            f"[{row.ratio_low:.2f}, {row.ratio_high:.2f}]",
            flush=True,
        )
    path = args.out or records.folder("cpu", args.threads) / "exported.csv"
    records.write(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
