"""`python -m benchmarks.report`: result files as a Markdown page and a plot."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import overhead, table
from .run import RESULTS
from .table import Row

COLUMNS = (
    "| case | torch.nn ms | ours ms | ratio | quartiles | GF/s torch.nn | GF/s ours | backend |"
)
RULE = "|---|--:|--:|--:|--:|--:|--:|---|"


def markdown(title: str, rows: Sequence[Row], facts: dict[str, Any]) -> str:
    """One result file as a section: machine, table, mean, and the losses by name."""
    timed = [row for row in rows if row.timed]
    losses = [row for row in timed if row.ratio < 1]
    lost = ", ".join(f"{row.case} ({row.ratio:.2f})" for row in losses) or "none"
    lines = [
        COLUMNS,
        RULE,
        *(_line(row) for row in rows),
        "",
        "The ratio is torch.nn's time over ours, the median over alternating pairs: above 1 is",
        f"faster. Geometric mean of {len(timed)} cases: **{table.geometric_mean(rows):.2f}**.",
        f"Slower than torch.nn: {len(losses)} of {len(timed)}: {lost}.",
    ]
    if facts["settings"]["overhead"]:
        lines = overhead.markdown(rows)
    return "\n".join([f"## {title}", "", _machine(facts), "", *lines, ""])


def _line(row: Row) -> str:
    if not row.timed:
        what = "near miss, not counted" if row.status == "near" else "failed, not timed"
        return f"| {row.case} | {what}: {table.one_line(row.reason)} | | | | | | |"
    ratio = f"{row.ratio:.2f}" if row.ratio >= 1 else f"**{row.ratio:.2f}** (loss)"
    return (
        f"| {row.case} | {row.torch_ms:.3f} | {row.candidate_ms:.3f} | {ratio} | "
        f"{row.ratio_q1:.2f}–{row.ratio_q3:.2f} | "
        f"{row.torch_gflops:.1f} | {row.candidate_gflops:.1f} | {row.taken} |"
    )


def _machine(facts: dict[str, Any]) -> str:
    settings, git = facts["settings"], facts["git"]
    commit = (
        f"{git['commit'][:12]}{' and uncommitted changes' if git['dirty'] else ''}"
        if git
        else "unknown"
    )
    hardware = (
        facts["gpu"]["name"]
        if facts["gpu"]
        else f"{facts['cpu']['model']} ({facts['cpu']['capability']})"
    )
    return (
        f"{hardware}, {settings['threads']} threads, {settings['dtype']}, {settings['mode']}; "
        f"torch {facts['torch']['version']}; commit {commit}; {facts['date']}; "
        f"load before the run {facts['load_average'][0]}."
    )


def plot(tables: Mapping[str, Sequence[Row]]) -> bytes:
    """A PNG: a bar a case and file, its ratio on a logarithmic axis, quartiles as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = list(dict.fromkeys(row.case for rows in tables.values() for row in rows))
    height = 0.8 / len(tables)
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.22 * len(names) * (1 + len(tables)) / 1.5))
    for index, (title, rows) in enumerate(tables.items()):
        timed = [row for row in rows if row.timed]
        places = [names.index(row.case) + (index - (len(tables) - 1) / 2) * height for row in timed]
        ratios = [row.ratio for row in timed]
        whiskers = [[r.ratio - r.ratio_q1 for r in timed], [r.ratio_q3 - r.ratio for r in timed]]
        label = f"{title}: geometric mean {table.geometric_mean(rows):.2f}"
        axes.barh(
            places,
            [r - 1 for r in ratios],
            height,
            left=1,
            xerr=whiskers,
            ecolor="gray",
            label=label,
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", yticks=range(len(names)), yticklabels=names)
    axes.set_xlabel("time of torch.nn / time of ours: right of 1 is faster")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(9, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return image.getvalue()


def write(paths: Sequence[Path], folder: Path) -> Path:
    """Writes `report.md` and `report.png` of the CSV files `paths`; each has its JSON beside it."""
    tables = {path.stem: table.read_csv(path) for path in paths}
    facts = {path.stem: json.loads(path.with_suffix(".json").read_text()) for path in paths}
    sections = [markdown(title, rows, facts[title]) for title, rows in tables.items()]
    page = "\n".join(["# rnnfast against torch.nn", "", "![ratios](report.png)", "", *sections])
    ratios = {t: rows for t, rows in tables.items() if not facts[t]["settings"]["overhead"]}
    table.write_bytes(folder / "report.png", plot(ratios or tables))
    table.write_text(folder / "report.md", page)
    return folder / "report.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        help="CSV files of one device, or its folder (default: every one)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the report (default: beside the CSV files)"
    )
    options = parser.parse_args(arguments)
    for folder, files in _by_folder(options.paths or sorted(RESULTS.glob("*/"))).items():
        print(write(files, options.out or folder))
    return 0


def _by_folder(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """A folder stands for its complete runs; a partial one has to be named."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        whole = sorted(file for file in path.glob("*.csv") if not file.stem.endswith("-partial"))
        for file in whole if path.is_dir() else [path]:
            found.setdefault(file.parent, []).append(file)
    return found


if __name__ == "__main__":
    sys.exit(main())
