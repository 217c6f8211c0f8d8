"""`python -m benchmarks.report`: result files as a Markdown page and plots."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import overhead, plots, table
from .run import RESULTS
from .table import Row

COLUMNS = (
    "| case | torch.nn ms | ours ms | ratio | quartiles | GF/s torch.nn | GF/s ours | backend |"
)
RULE = "|---|--:|--:|--:|--:|--:|--:|---|"


def markdown(
    title: str, rows: Sequence[Row], facts: dict[str, Any], picture: str | None = None
) -> str:
    """One result file as a section: machine, picture, table, mean, and the losses by name."""
    timed = [row for row in rows if row.timed]
    losses = [row for row in timed if row.ratio < 1]
    peak = (facts.get("roofs") or {}).get("peak_gflops")
    lost = ", ".join(f"{row.case} ({row.ratio:.2f})" for row in losses) or "none"
    lines = [
        COLUMNS,
        RULE,
        *(_line(row, peak) for row in rows),
        "",
        "The ratio is torch.nn's time over ours, the median over alternating pairs: above 1 is",
        f"faster. Geometric mean of {len(timed)} cases: **{table.geometric_mean(rows):.2f}**.",
        f"Slower than torch.nn: {len(losses)} of {len(timed)}: {lost}.",
        f"torch's kernels were taken in {sum(row.taken == 'torch' for row in timed)}.",
    ]
    if facts["settings"]["overhead"]:
        lines = overhead.markdown(rows)
    shown = [f"![{title}]({picture})", ""] if picture else []
    return "\n".join([f"## {title}", "", _machine(facts), "", *shown, *lines, ""])


def _line(row: Row, peak: float | None = None) -> str:
    if not row.timed:
        what = "near miss, not counted" if row.status == "near" else "failed, not timed"
        return f"| {row.case} | {what}: {table.one_line(row.reason)} | | | | | | |"
    share = f" ({row.candidate_gflops / peak:.0%})" if peak else ""
    ratio = f"{row.ratio:.2f}" if row.ratio >= 1 else f"**{row.ratio:.2f}** (loss)"
    return (
        f"| {row.case} | {row.torch_ms:.3f} | {row.candidate_ms:.3f} | {ratio} | "
        f"{row.ratio_q1:.2f}–{row.ratio_q3:.2f} | "
        f"{row.torch_gflops:.1f} | {row.candidate_gflops:.1f}{share} | {row.taken} |"
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
    roofs = facts.get("roofs")
    top = f"; peak {roofs['peak_gflops']} GF/s, {roofs['bandwidth_gb_s']} GB/s" if roofs else ""
    return (
        f"{hardware}{top}, {settings['threads']} threads, {settings['dtype']}, {settings['mode']}; "
        f"torch {facts['torch']['version']}; commit {commit}; {facts['date']}; "
        f"load before the run {facts['load_average'][0]}."
    )


def write(paths: Sequence[Path], folder: Path) -> Path:
    """Writes `report.md` and its pictures of the CSV files `paths`; each has its JSON beside it."""
    tables = {path.stem: table.read_csv(path) for path in paths}
    facts = {path.stem: json.loads(path.with_suffix(".json").read_text()) for path in paths}
    drawn = _pictures(tables, facts)
    own = {title: f"{title}.png" for title in tables if f"{title}.png" in drawn}
    sections = [markdown(t, rows, facts[t], own.get(t)) for t, rows in tables.items()]
    pictures = [f"![{Path(name).stem}]({name})" for name in drawn if name not in own.values()]
    page = "\n".join(["# rnnfast against torch.nn", "", *pictures, "", *sections])
    for name, image in drawn.items():
        table.write_bytes(folder / name, image)
    table.write_text(folder / "report.md", page)
    return folder / "report.md"


def _pictures(
    tables: Mapping[str, Sequence[Row]], facts: Mapping[str, dict[str, Any]]
) -> dict[str, bytes]:
    """By file name, what the tables can show: one of each by its own name, others of all."""
    ratios = {t: rows for t, rows in tables.items() if not facts[t]["settings"]["overhead"]}
    swept = {t: rows for t, rows in ratios.items() if facts[t]["settings"].get("set") == "sweep"}
    barred = {t: rows for t, rows in (ratios or tables).items() if t not in swept}
    found = {f"{title}.png": plots.bars(title, rows) for title, rows in barred.items()}
    if swept:
        found["sweep.png"] = plots.sweeps(swept)
    roofs = next((f["roofs"] for f in facts.values() if f.get("roofs")), None)
    if roofs and any(row.timed for rows in ratios.values() for row in rows):
        found["roofline.png"] = plots.roofline(ratios, roofs)
    return found


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
        files = sorted(path.glob("*.csv"))
        whole = [f for f in files if not f.stem.endswith("-partial")]
        for file in whole if path.is_dir() else [path]:
            found.setdefault(file.parent, []).append(file)
    return found


if __name__ == "__main__":
    sys.exit(main())
