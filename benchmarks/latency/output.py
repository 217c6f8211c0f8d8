"""The model's answers as text, CSV and plots. Every assumed constant is marked as such."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rnnfast.inspect.table import columns

from ..table import write_bytes, write_text
from .published import FIGURES, Published
from .steps import LIMITS, PARTS, STRATEGIES, Point, Step

NOTICE = "Modelled, not measured: no figure here comes from running on a GPU."
Rates = Mapping[str, tuple[float, str, str]]
BestOf = Mapping[Point, Mapping[str, Step]]


def micro(ns: float) -> str:
    return f"{ns / 1000:.2f}"


def table(best: BestOf) -> str:
    """A line a size: µs a step of each strategy, the fastest one's numbers, and the limits."""
    header = [
        "device, cell, product, pass", "H", "B", *STRATEGIES, "fastest", "numbers", "bound by",
        "instr.", "assumed", *(f"limit: {name}" for name in (*LIMITS, "barriers")),
    ]  # fmt: skip
    lines = []
    for point, steps in best.items():
        fastest = min(steps.values(), key=lambda step: step.expected)
        counted = fastest.instructions
        lines.append(
            [
                f"{point.device} {point.cell} {point.math} {point.pass_name}",
                point.H,
                point.B,
                *(micro(steps[s].expected) if s in steps else "–" for s in STRATEGIES),
                fastest.choice.strategy,
                fastest.choice.text or "–",
                fastest.bottleneck,
                "est." if math.isnan(counted) else f"{counted:.0f}",
                f"{100 * fastest.assumed:.0f} %",
                *(micro(fastest.limits[name]) for name in LIMITS),
                micro(fastest.barriers),
            ]
        )
    return columns(header, lines)


def rates_table(device: str, rates: Rates) -> str:
    header = (f"constants of {device}", "value", "unit", "from")
    lines = [
        (name, f"{value:g}", unit, by if by else "ASSUMED")
        for name, (value, unit, by) in rates.items()
    ]
    return columns(header, lines)


def published_table() -> str:
    header = ("published by others", "layer", "pass", "T", "B", "H", "ms", "µs a step")
    lines = [
        (f"{f.system}, {f.source}", f.cell, f.pass_name, f.T, f.B, f.H, f.ms, f"{f.step_us:.2f}")
        for f in FIGURES
    ]
    note = "Whole layers on their machines (GPU not stated), with the product of the input."
    return f"{columns(header, lines)}\n{note}"


def steps_csv(steps: Iterable[Step]) -> str:
    """Every strategy of every size with all its parts, ns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *Point._fields, "strategy", "numbers", "instructions", "total_ns", "expected_ns",
            "assumed_share", *(f"{name}_ns" for name in PARTS), "memory_ns",
            *(f"limit_{name}_ns" for name in (*LIMITS, "barriers")),
        ]
    )  # fmt: skip
    for step in steps:
        values = [step.total, step.expected, step.assumed, *(step.parts[n] for n in PARTS)]
        values += [step.memory, *(step.limits[name] for name in LIMITS), step.barriers]
        counted = "" if math.isnan(step.instructions) else f"{step.instructions:.0f}"
        choice = step.choice
        figures = (f"{value:.4g}" for value in values)
        writer.writerow([*step.point, choice.strategy, choice.text, counted, *figures])
    return text.getvalue()


def kinds_csv(steps: Iterable[Step]) -> str:
    """Instructions of a warp in a step (of one batch tile) by kind, where they were counted."""
    counted = [step for step in steps if step.kinds]
    names = sorted({name for step in counted for name in step.kinds})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*Point._fields, "strategy", "numbers", *names])
    for step in counted:
        figures = (step.kinds.get(name, 0) for name in names)
        writer.writerow([*step.point, step.choice.strategy, step.choice.text, *figures])
    return text.getvalue()


def rates_csv(rates: Mapping[str, Rates]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["device", "name", "value", "unit", "from"])
    for device, listed in rates.items():
        for name, (value, unit, by) in listed.items():
            writer.writerow([device, name, f"{value:g}", unit, by or "ASSUMED"])
    return text.getvalue()


def plot(best: BestOf, B: int, B_total: str) -> dict[str, bytes]:
    """Two files, ``png`` and ``svg``: µs a step over H; a panel for each pass and product.

    Of `best` all points of one device and cell; B: the batch that is drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {point: steps for point, steps in best.items() if point.B == B}
    passes = list(dict.fromkeys(point.pass_name for point in drawn))
    maths = list(dict.fromkeys(point.math for point in drawn))
    figure, axes = pyplot.subplots(
        len(passes), len(maths), figsize=(5 * len(maths), 4 * len(passes)), squeeze=False
    )
    for row, pass_name in enumerate(passes):
        for column, way in enumerate(maths):
            panel = axes[row][column]
            chosen = [p for p in drawn if (p.pass_name, p.math) == (pass_name, way)]
            _panel(panel, {point: drawn[point] for point in chosen})
            panel.set_title(f"{pass_name}, {way}")
    one = next(iter(drawn))
    figure.suptitle(f"{one.device}, {one.cell}, {B_total}\n{NOTICE}", fontsize=9)
    panels: list[Any] = [panel for line in axes for panel in line]
    handles = {h.get_label(): h for a in panels for h in a.get_legend_handles_labels()[0]}
    figure.legend(handles=list(handles.values()), loc="lower center", ncol=2, fontsize=7)
    figure.tight_layout(rect=(0, 0.012 * (len(handles) + 1), 1, 0.97))
    files = {}
    for kind in ("png", "svg"):
        image = io.BytesIO()
        figure.savefig(image, format=kind, dpi=120)
        files[kind] = image.getvalue()
    pyplot.close(figure)
    return files


def _panel(axes: Any, best: BestOf) -> None:
    draw = axes.plot
    for strategy in STRATEGIES:
        there = {point.H: steps[strategy] for point, steps in best.items() if strategy in steps}
        if there:
            draw(
                list(there), [s.expected / 1000 for s in there.values()], "o-", ms=3, label=strategy
            )
    hidden = [point.H for point in best]
    any_step = [next(iter(steps.values())) for steps in best.values()]
    for name, dots in zip(LIMITS, (":", "--", "-."), strict=True):
        values = [step.limits[name] / 1000 for step in any_step]
        if any(values):
            draw(hidden, values, dots, color="gray", lw=1, label=f"limit: {name}")
    fastest = [min(steps.values(), key=lambda step: step.expected) for steps in best.values()]
    draw(hidden, [s.barriers / 1000 for s in fastest], ",-", color="gray", lw=0.5, label=_BARRIERS)
    for figure in published_for(next(iter(best))):
        draw([figure.H], [figure.step_us], "x", color="black", label=figure.label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="H",
        ylabel="µs a step",
        xticks=hidden,
        xticklabels=hidden,
    )
    axes.minorticks_off()


_BARRIERS = "barriers of the fastest"


def published_for(point: Point) -> list[Published]:
    """cuDNN's, of that cell and pass: a training step is no pass."""
    return [
        f
        for f in FIGURES
        if f.system == "cuDNN" and (f.cell, f.pass_name) == (point.cell, point.pass_name)
    ]


def write(
    folder: Path, best: BestOf, rates: Mapping[str, Rates], plotted_batch: int
) -> Sequence[Path]:
    """latency.csv, instructions.csv (where counted), rates.csv and the plots of each device and
    cell."""
    everything = [step for steps in best.values() for step in steps.values()]
    texts = {"latency.csv": steps_csv(everything), "rates.csv": rates_csv(rates)}
    if any(step.kinds for step in everything):
        texts["instructions.csv"] = kinds_csv(everything)
    written = []
    for name, text in texts.items():
        write_text(folder / name, text)
        written.append(folder / name)
    for device, cell in dict.fromkeys((point.device, point.cell) for point in best):
        chosen = {p: s for p, s in best.items() if (p.device, p.cell) == (device, cell)}
        stem = f"latency-{device}-{cell}".replace(" ", "-")
        title = f"B = {plotted_batch}, T = {next(iter(chosen)).T}"
        for kind, content in plot(chosen, plotted_batch, title).items():
            write_bytes(folder / f"{stem}.{kind}", content)
            written.append(folder / f"{stem}.{kind}")
    return written
