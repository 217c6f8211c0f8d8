"""`python -m benchmarks.latency`: what a step should cost on a GPU. Needs none.

Prints a line for each size, writes CSV files and plots. Instructions are counted in the machine
code where nvcc and the sources are there (--no-count leaves that out).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnnfast import _ext
from rnnfast.inspect.cuda import CELL_TYPES, InspectError
from rnnfast.inspect.sass import ToolError

from . import counts, output
from .loops import LoopError, StepLoop
from .steps import MATHS, STRATEGIES, Candidate, Model, Point, Step, points

OUT = Path(__file__).resolve().parents[2] / "build" / "latency" / "model"


def load_rates(path: Path) -> tuple[dict[str, float], list[float] | None]:
    """The constants of a file, and the numbers of its device where it has them.

    It is ``{"rates": {name: value}, "device_numbers": […]}``, as `make gpu-check` writes it, where
    a value is an object with a "value"; or just ``{name: value}``.

    Raises ValueError where it is neither, or a dry run's, whose numbers say nothing of a GPU.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no object of constants")
    if content.get("dry_run"):
        raise ValueError(f"{path} is of a dry run: its numbers are no device's")
    listed = content.get("rates", content)
    found = {}
    for name, entry in listed.items():
        value = entry.get("value") if isinstance(entry, dict) else entry
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{path}: {name} has no number")
        if math.isfinite(value):  # what could not be measured is NaN or null there
            found[name] = float(value)
    return found, content.get("device_numbers")


def choose(model: Model, wanted: Sequence[Point]) -> dict[Point, dict[str, Candidate]]:
    """The best of each strategy that can run, for each size."""
    found: dict[Point, dict[str, Candidate]] = {}
    for point in wanted:
        best = {strategy: model.best(point, strategy) for strategy in STRATEGIES}
        found[point] = {name: choice for name, choice in best.items() if choice is not None}
    return found


def count_for(
    chosen: Mapping[Point, Mapping[str, Candidate]], model: Model, fast: bool
) -> dict[tuple[int, counts.Kernel], StepLoop]:
    """The step loops of all kernels that were chosen, by architecture.

    fast: only of the fastest strategy of each size. Raises what counts.count raises.
    """
    kernels: dict[int, list[counts.Kernel]] = {}
    for point, choices in chosen.items():
        arch = model.numbers(point.device)[0]
        best = min(choices.values(), key=lambda c: model.cost(point, c)["total"])
        for choice in [best] if fast else choices.values():
            if choice.kernel is not None:
                kernels.setdefault(arch, []).append(choice.kernel)
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    return {
        (arch, kernel): loop
        for arch, wanted in kernels.items()
        for kernel, loop in counts.count_all(wanted, arch, tell).items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where the extension is missing or machine code can't be read."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    module: Any = _ext.load()
    if module is None:
        print(f"benchmarks.latency: {_ext.why_missing()}", file=sys.stderr)
        return 1
    try:
        model = Model(module, *(load_rates(asked.rates) if asked.rates else ()))
        names = [name.strip() for name in asked.devices.split(",")]
        rates = {device: model.rates(device) for device in names}
        wanted = points(names, asked.cells, asked.maths, asked.hidden, asked.batch, asked.steps)
        chosen = choose(model, wanted)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    best = _steps(model, chosen, asked)
    if best is None:
        return 1
    _show(best, rates, asked)
    batch = asked.plot_batch if asked.plot_batch in asked.batch else max(asked.batch)
    for path in output.write(asked.out, best, rates, batch):
        print(os.path.relpath(path))
    return 0


def _steps(
    model: Model, chosen: Mapping[Point, Mapping[str, Candidate]], asked: argparse.Namespace
) -> dict[Point, dict[str, Step]] | None:
    loops: dict[tuple[int, counts.Kernel], StepLoop] = {}
    missing = "--no-count" if asked.no_count else counts.why_not()
    if missing:
        print(f"Instructions are not counted: {missing}. The model estimates them.")
    try:
        if not missing:
            loops = count_for(chosen, model, asked.fastest_only)
        best: dict[Point, dict[str, Step]] = {}
        for point, choices in chosen.items():
            arch = model.numbers(point.device)[0]
            best[point] = {
                name: model.step(point, c, loops.get((arch, c.kernel)) if c.kernel else None)
                for name, c in choices.items()
            }
    except (InspectError, ToolError, LoopError) as error:
        print(f"benchmarks.latency: {error}", file=sys.stderr)
        return None
    return best


def _show(
    best: Mapping[Point, Mapping[str, Step]],
    rates: Mapping[str, output.Rates],
    asked: argparse.Namespace,
) -> None:
    print(f"{output.NOTICE}\nµs a step, T = {asked.steps}.\n")
    print(output.table(best))
    print(
        "\ninstr.: of a warp in a step, one batch tile; est.: estimated, not counted. assumed: the"
        " share of the step\nthat grows with constants that nobody published (below). Limits: no"
        " kernel is faster, on the whole device.\n"
    )
    print(f"{output.published_table()}\n")
    for device, listed in rates.items():
        print(f"{output.rates_table(device, listed)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    add = parser.add_argument
    add("--devices", default="H100", help="names with commas between; `measured`: of --rates")
    add("--cells", nargs="+", choices=list(CELL_TYPES), default=["lstm", "gru"])
    add("--maths", nargs="+", choices=MATHS, default=["bf16", "tf32"], help="products")
    add("--hidden", nargs="+", type=_size, default=[128, 256, 512, 768, 1024], help="H")
    add("--batch", nargs="+", type=_size, default=[16, 64], help="B")
    add("--steps", type=_size, default=1024, help="T (default 1024)")
    add("--rates", type=Path, help="constants measured on a device: rates.json of gpu-check")
    add("--no-count", action="store_true", help="without reading machine code")
    add("--fastest-only", action="store_true", help="count only for each size's fastest strategy")
    add("--plot-batch", type=_size, default=64, help="B of the plots (default 64)")
    add(
        "--out",
        type=Path,
        default=OUT,
        help="folder of CSV and plots (default build/latency/model)",
    )
    return parser


def _size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
