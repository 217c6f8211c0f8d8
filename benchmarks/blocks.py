"""What benchmarks.figures writes of the smaller programs' files: a table a machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import (
    cells,
    clip,
    distributed,
    exported,
    forward_peers,
    gemm,
    loaded,
    options,
    scaling,
    seeds,
    streaming,
    table,
    transforms,
    workload,
)
from .cases import parse
from .records import Record, records

LONG_SUM = 8192  # beyond, rnnfast/products takes torch's product
NOT_YET = "No machine has measured it yet."


def each(results: Path, name: str, show: Callable[[Record], Iterator[str]]) -> Iterator[str]:
    """What ``show`` makes of every machine's file, under whose it is."""
    there = list(records(results, name))
    if not there:
        yield NOT_YET
    for record in there:
        yield f"{record.caption}:"
        yield ""
        yield from show(record)
        yield ""


def as_it_stands(record: Record) -> Iterator[str]:
    """A file whose columns are made to be read."""
    header, lines = record.cells()
    numbers = [all(_is_number(line[k]) for line in lines) for k in range(len(header))]
    yield from _markdown(header, lines, numbers)


def own_cells(record: Record) -> Iterator[str]:
    """A line a pair, a column a size; of peers that were there."""
    rows = [row for row in record.rows(cells.Row) if row.reason != "not installed"]
    sizes = list(dict.fromkeys(row.size for row in rows))
    found = {(row.first, row.second, row.size): row for row in rows}
    lines = []
    for first, second in dict.fromkeys((row.first, row.second) for row in rows):
        three = [found.get((first, second, size)) for size in sizes]
        lines.append([f"{first} → {second}", *(_ratio(row) if row else "" for row in three)])
    yield from _markdown(["", *sizes], lines)


def compile_times(record: Record) -> Iterator[str]:
    rows = record.rows(cells.Compiled)
    lines = [
        [f"`{row.cell}`", *(_seconds(s) for s in (row.source_s, row.compile_s, row.load_s))]
        for row in rows
    ]
    yield from _markdown(["", "the source", "compiling it, once", "loading it again"], lines)


def products(record: Record) -> Iterator[str]:
    """Of cells with four gates; then what the whole file says of short and long sums."""
    rows, peak = record.rows(gemm.Row), record.facts["peak_gflops"]
    groups = [g for g in dict.fromkeys(row.group for row in rows) if " G" not in g or " G4" in g]
    lines = []
    for group in groups:
        of = [row for row in rows if row.group == group]
        rates = ", ".join(f"{row.ours_gflops:.0f}" for row in of)
        shares = ", ".join(f"{100 * row.ours_gflops / peak:.0f}" for row in of)
        ratios = ", ".join(f"{row.ratio:.2f}" for row in of)
        name = f"{group.replace(' G4', ', LSTM')}: {', '.join(row.what for row in of)}"
        lines.append([name, f"{rates} ({shares} %)", ratios])
    yield from _markdown(["", "ours, GF/s", "torch's time / ours"], lines)
    yield ""
    yield f"The peak is {peak:.0f} GF/s."
    for which, long in ((f"of up to {LONG_SUM:,} steps", False), ("of more", True)):
        ratios = [row.ratio for row in rows if (row.K > LONG_SUM) == long]
        if ratios:
            yield (
                f"{len(ratios)} sums {which}: geometric mean {_geometric(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})."
            )


def under_load(record: Record) -> Iterator[str]:
    lines = []
    for row in record.rows(loaded.Row):
        case = parse(row.case)
        name = f"{case.class_name} T{case.T} B{case.B} I{case.I} H{case.H}"
        times = [_digits(row.torch_ms), f"{row.torch_loaded:.1f}"]
        times += [_digits(row.rnnfast_ms), f"{row.rnnfast_loaded:.1f}"]
        lines.append([name, *times])
    yield from _markdown(
        ["", "torch.nn, ms", "times as long", "rnnfast, ms", "times as long"], lines
    )


def options_left_out(record: Record) -> Iterator[str]:
    """A line a case, a column a cell: torch.nn's time / ours, in training and forward."""
    rows = record.rows(options.Row)
    names = list(dict.fromkeys(row.cell for row in rows))
    found = {(row.case, row.cell, row.mode): row for row in rows}
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        both = [[found.get((case, name, mode)) for mode in workload.MODES] for name in names]
        lines.append([case, *(" / ".join(f"{r.ratio:.2f}" if r else "–" for r in b) for b in both)])
    yield from _markdown(["training / forward", *names], lines)


def single_steps(record: Record) -> Iterator[str]:
    """First quartiles, a line a layer, a column a peer."""
    rows = record.rows(streaming.Row)
    names = list(dict.fromkeys(row.peer for row in rows))
    found = {(row.hidden, row.cell, row.peer): row.q1_us for row in rows}
    lines = [
        [f"{cell} {hidden}", *(_digits(found.get((hidden, cell, n), math.nan)) for n in names)]
        for hidden, cell in dict.fromkeys((row.hidden, row.cell) for row in rows)
    ]
    yield from _markdown(["µs a step", *names], lines)


def onnx(record: Record) -> Iterator[str]:
    lines = [
        [row.layer, _digits(row.onnx_ms), _digits(row.rnnfast_ms), f"{row.ratio:.2f}"]
        for row in record.rows(exported.Row)
    ]
    yield from _markdown(["", "ONNX Runtime, ms", "the layer, ms", "ratio"], lines)


def derivatives(record: Record) -> Iterator[str]:
    yield from transforms.table(record.rows(transforms.Row))


def clipping(record: Record) -> Iterator[str]:
    """torch's clip_grad_norm_ / rnnfast's."""
    rows = record.rows(clip.Row)
    kinds = list(dict.fromkeys((row.dtype, row.scale) for row in rows))
    found = {(row.tensors, row.dtype, row.scale): row for row in rows}
    lines = []
    for name in dict.fromkeys(row.tensors for row in rows):
        of = [found[name, dtype, scale] for dtype, scale in kinds]
        ratios = [f"{r.ratio:.2f} ({r.ratio_low:.2f}–{r.ratio_high:.2f})" for r in of]
        lines.append([name.replace(" x ", " × "), *ratios])
    yield from _markdown(["", *(f"{dtype}, {scale}" for dtype, scale in kinds)], lines)


def trained(record: Record) -> Iterator[str]:
    names = {"rnnfast": "rnnfast", "torch": "torch.nn"}
    lines = []
    for row in record.rows(seeds.Row):
        quartiles = f"{row.ratio:.2f} ({row.ratio_q1:.2f}–{row.ratio_q3:.2f})"
        figures = [f"{row.perplexity:.3f}", f"{row.tokens_per_s:,.0f}", quartiles]
        lines.append([f"{names[row.implementation]}, seed {row.seed}", *figures])
    yield from _markdown(["", "perplexity", "tokens/s", "ratio (quartiles)"], lines)


def everybody(record: Record) -> Iterator[str]:
    yield from forward_peers.table(record.rows(forward_peers.Forward))


def two_processes(record: Record) -> Iterator[str]:
    yield from scaling.measured(record.rows(distributed.Row))


def by_arithmetic(record: Record) -> Iterator[str]:
    yield from scaling.reckoned(record.rows(distributed.Row))


# the name of a block: its file, and what shows it
TABLES: dict[str, tuple[str, Callable[[Record], Iterator[str]]]] = {
    "own-cells": ("cells", own_cells),
    "clip": ("clip", clipping),
    "compile-times": ("compile", compile_times),
    "products": ("gemm", products),
    "forward-peers": ("forward-peers", everybody),
    "loaded": ("loaded", under_load),
    "options": ("options", options_left_out),
    "single-steps": ("streaming", single_steps),
    "onnx": ("exported", onnx),
    "transforms": ("transforms", derivatives),
    "training-S2": ("training-S2", trained),
    "distributed": ("distributed", two_processes),
    "arithmetic": ("distributed", by_arithmetic),
}


# --- words ---------------------------------------------------------------------------------------


def _markdown(
    header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[bool] | None = None
) -> Iterator[str]:
    """A table; all columns but the first are numbers, if ``right`` does not say which are."""
    right = [k > 0 for k in range(len(header))] if right is None else right
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('--:' if number else '---' for number in right)}|"
    for line in lines:
        yield f"| {' | '.join(table.one_line(cell) for cell in line)} |"


def _is_number(text: str) -> bool:
    return text.replace("−", "-").lstrip("+-*(")[:1].isdigit() or text in ("", "–")


def _digits(value: float) -> str:
    """Three of them."""
    if math.isnan(value):
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _ratio(row: cells.Row) -> str:
    return row.reason or f"{row.ratio:.2f}"


def _geometric(ratios: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
