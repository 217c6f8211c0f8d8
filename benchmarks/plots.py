"""The pictures of a report, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from . import table
from .cases import CLASS_NAMES, parse
from .table import Row

# Of a sweep: which size runs, along which the others stand still.
SWEPT = {"H": "hidden units", "B": "sequences", "T": "steps"}


def bars(title: str, rows: Sequence[Row]) -> bytes:
    """A PNG: a bar a case, its ratio on a logarithmic axis, quartiles as whiskers."""
    pyplot, ticker = _library()
    names = [row.case for row in rows]
    timed = [row for row in rows if row.timed]
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.22 * len(names)))
    axes.barh(
        [names.index(row.case) for row in timed],
        [row.ratio - 1 for row in timed],
        0.7,
        left=1,
        xerr=[[r.ratio - r.ratio_q1 for r in timed], [r.ratio_q3 - r.ratio for r in timed]],
        ecolor="gray",
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names)
    axes.set_title(f"{title}: geometric mean {table.geometric_mean(rows):.2f}", fontsize="medium")
    axes.set_xlabel("time of torch.nn / time of ours: right of 1 is faster")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.margins(y=0.5 / len(names))
    axes.invert_yaxis()
    return _png(pyplot, figure)


def sweeps(tables: Mapping[str, Sequence[Row]]) -> bytes:
    """A panel for each size that runs: the ratio of each layer over it, both axes logarithmic."""
    pyplot, ticker = _library()
    figure, panels = pyplot.subplots(1, len(SWEPT), figsize=(12, 4), sharey=True)
    for axes, (letter, words) in zip(panels, SWEPT.items(), strict=True):
        for title, rows in tables.items():
            for cell in CLASS_NAMES:
                line = _line_of(rows, cell, letter)
                label = cell if len(tables) == 1 else f"{cell}, {title}"
                axes.plot([x for x, _ in line], [y for _, y in line], marker="o", label=label)
        axes.axhline(1, color="black", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=words)
        axes.yaxis.set_major_locator(ticker.LogLocator(2, subs=[1.0]))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    panels[0].set_ylabel("time of torch.nn / time of ours")
    panels[0].legend()
    return _png(pyplot, figure)


def _line_of(rows: Sequence[Row], cell: str, letter: str) -> list[tuple[int, float]]:
    """(size, ratio) of the largest group of a cell's cases that differ in one size alone."""
    groups: dict[tuple[int, ...], dict[int, float]] = {}
    for row in rows:
        case = parse(row.case)
        if row.timed and case.cell == cell:
            sizes = {"T": case.T, "B": case.B, "H": case.H}
            still = tuple(size for name, size in sizes.items() if name != letter)
            groups.setdefault(still, {})[sizes[letter]] = row.ratio
    return sorted(max(groups.values(), key=len, default={}).items())


def roofline(tables: Mapping[str, Sequence[Row]], roofs: Mapping[str, float]) -> bytes:
    """Each case's GF/s over the operations that it has for a byte that must pass through memory;
    above it what the processor can do at most."""
    pyplot, _ = _library()
    figure, axes = pyplot.subplots(figsize=(8, 5))
    peak, bandwidth = roofs["peak_gflops"], roofs["bandwidth_gb_s"]
    rows = [row for rows in tables.values() for row in rows if row.timed]
    reach = [row.intensity for row in rows]
    ends = [min(reach) / 2, peak / bandwidth, max(*reach, peak / bandwidth) * 2]
    axes.plot(ends, [min(peak, bandwidth * x) for x in ends], color="black", label="the processor")
    axes.scatter(reach, [row.candidate_gflops for row in rows], label="rnnfast")
    axes.scatter(reach, [row.torch_gflops for row in rows], marker="x", label="torch.nn")
    axes.set(xscale="log", yscale="log", ylabel="GF/s")
    axes.set_xlabel("floating-point operations a byte of input, output and weights")
    axes.legend()
    return _png(pyplot, figure)


def _library() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    return pyplot, ticker


def _png(pyplot: Any, figure: Any) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return image.getvalue()
