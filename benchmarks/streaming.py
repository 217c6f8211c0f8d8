"""A step of one layer at a time: rnnfast.Stream beside what else takes single steps.

    python -m benchmarks.streaming [--sizes H,H] [--batch B] [--seconds S] [--onnx PYTHON]

writes more/streaming.csv beside the results of the layers. Peers: torch.nn's layer on a sequence of
one step, its cell (LSTMCell and so on), rnnfast's layer, and ONNX Runtime where ``--onnx`` names an
interpreter that has onnx, onnxruntime and numpy, in a process of its own. A step carries the state
on. Each pair is timed in turns (measure.py), in batches of calls; what is told is the median and
the first quartile of a step in microseconds, the latter for machines that others use too. Before
that all are compared with float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import rnnfast

from . import records
from .measure import alternate

CALLS = 20  # that are timed at once
CHECKED = 20  # steps that are compared
# of outputs, all below 1: what rounding the weights may do
ERRORS = {"Stream bfloat16": 0.05, "Stream int8": 0.1}
EXACT = 1e-5
Step = Callable[[Tensor], Tensor]


class Timed(NamedTuple):
    """Microseconds of a step."""

    median: float
    quartile: float


@dataclass(frozen=True)
class Row:
    """A peer's step; microseconds."""

    cell: str
    hidden: int  # and inputs
    batch: int
    peer: str
    median_us: float
    q1_us: float


class _Work:
    def __init__(self, step: Step, x: Tensor) -> None:
        self.step, self.x = step, x

    def prepare(self) -> None:
        pass

    def __call__(self) -> None:
        step, x = self.step, self.x
        for _ in range(CALLS):
            step(x)


def of_layer(layer: Any) -> Step:
    """Sequences of one step."""
    state: Any = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        y, state = layer(x.unsqueeze(0), state)
        return y[0]

    return step


def of_cell(kind: str, layer: nn.RNNBase) -> Step:
    cell: Any = getattr(nn, f"{kind}Cell")(layer.input_size, layer.hidden_size)
    cell.load_state_dict({n.removesuffix("_l0"): w for n, w in layer.state_dict().items()})
    state: Any = None

    def step(x: Tensor) -> Tensor:
        nonlocal state
        state = cell(x, state)
        return state[0] if kind == "LSTM" else state

    return step


def steps(kind: str, hidden: int, batch: int) -> dict[str, Step]:
    """torch.nn's layer first; all with the same weights."""
    theirs = getattr(nn, kind)(hidden, hidden)
    ours = getattr(rnnfast, kind)(hidden, hidden)
    ours.load_state_dict(theirs.state_dict())
    found = {
        "torch.nn layer": of_layer(theirs),
        "torch.nn cell": of_cell(kind, theirs),
        "rnnfast layer": of_layer(ours),
        "Stream": rnnfast.Stream(ours, batch),
    }
    for weights in rnnfast.stream.STORAGES:
        found[f"Stream {weights}"] = rnnfast.Stream(ours, batch, weights)
    return found


def check(found: dict[str, Step], kind: str, hidden: int, batch: int) -> None:
    """Raises AssertionError for a peer that computes something else."""
    theirs: Any = getattr(nn, kind)(hidden, hidden, dtype=torch.float64)
    layer = found["Stream"].layer  # type: ignore[attr-defined]
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(CHECKED, batch, hidden)
    y = theirs(x.double())[0]
    for name, step in found.items():
        error = max(float((step(x[t]).double() - y[t]).abs().max()) for t in range(CHECKED))
        allowed = ERRORS.get(name, EXACT)
        assert error <= allowed, f"{kind} {hidden}, {name}: off by {error:.1e}, {allowed} allowed"


def measured(found: dict[str, Step], hidden: int, batch: int, seconds: float) -> dict[str, Timed]:
    """Each in turns with torch.nn's layer."""
    x = torch.randn(batch, hidden)
    first = next(iter(found))
    times: dict[str, Timed] = {}
    for name, step in found.items():
        if name == first:
            continue
        pairs = alternate(_Work(found[first], x), _Work(step, x), seconds)
        times.setdefault(first, _timed(pairs.a))
        times[name] = _timed(pairs.b)
    return times


def _timed(seconds: tuple[float, ...]) -> Timed:
    each = [s / CALLS * 1e6 for s in seconds]
    return Timed(statistics.median(each), statistics.quantiles(each, n=4)[0])


def with_onnx(python: str, kind: str, hidden: int, batch: int, seconds: float) -> Timed:
    """ONNX Runtime in a process of its own, on one thread as this one, checked there."""
    layer = getattr(nn, kind)(hidden, hidden)
    x = torch.randn(CHECKED, batch, hidden)
    with tempfile.TemporaryDirectory() as folder:
        weights = [p.detach().flatten().tolist() for p in layer.parameters()]
        y = layer(x)[0]
        problem = {
            "kind": kind, "hidden": hidden, "batch": batch, "seconds": seconds, "calls": CALLS,
            "threads": torch.get_num_threads(), "weights": weights, "x": x.tolist(),
            "y": y.tolist(),
        }  # fmt: skip
        path = Path(folder) / "problem.json"
        path.write_text(json.dumps(problem))
        script = Path(__file__).with_name("streaming_onnx.py")
        done = subprocess.run(
            [python, str(script), str(path)], check=True, capture_output=True, text=True
        )
    return _timed(tuple(json.loads(done.stdout)))


def compare(sizes: list[int], batch: int, seconds: float, onnx: str) -> Iterator[Row]:
    for kind in ("LSTM", "GRU", "RNN"):
        for hidden in sizes:
            torch.manual_seed(0)
            with torch.no_grad():
                found = steps(kind, hidden, batch)
                check(found, kind, hidden, batch)
                times = measured(found, hidden, batch, seconds)
                if onnx:
                    times["ONNX Runtime"] = with_onnx(onnx, kind, hidden, batch, seconds)
            for name, (median, quartile) in times.items():
                yield Row(kind, hidden, batch, name, median, quartile)


def line(row: Row) -> str:
    name = f"{row.cell} H=I={row.hidden} B={row.batch}"
    return f"{name:20}{row.peer:18}{row.median_us:10.1f} us, quartile {row.q1_us:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming")
    parser.add_argument("--sizes", default="128,256,512,1024", help="hidden units and inputs")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each pair")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--onnx", default="", help="an interpreter that has ONNX Runtime")
    parser.add_argument("--out", type=Path, help="a CSV file; default: of this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    facts = records.facts("cpu", args.threads, seconds=args.seconds)
    rows = []
    for row in compare(
        [int(size) for size in args.sizes.split(",")], args.batch, args.seconds, args.onnx
    ):
        rows.append(row)
        print(line(row), flush=True)
    path = args.out or records.folder("cpu", args.threads) / "streaming.csv"
    records.write(path, rows, facts)
    print(path)


if __name__ == "__main__":
    main()
