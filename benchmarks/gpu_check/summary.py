"""The page that says what a check found: summary.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnnfast import _ext

from .. import table
from . import layers, peers, speed
from .stages import Context, Result

DRY = "**Dry run: no device was used. No number here says anything about a GPU.**"
MOST_LISTED = 8


def write(context: Context, results: Sequence[Result], facts: Mapping[str, Any]) -> Path:
    """Also while stages are left: what is not there yet is not in it."""
    parts = [_head(context, facts), _stages(results)]
    details = {result.name: result.outcome.details for result in results}
    if details.get("rates"):
        parts.append(_rates(details["rates"], context))
    if details.get("tests", {}).get("failed"):
        parts.append(_list("Failed tests", details["tests"]["failed"]))
    if details.get("sanitizers"):
        parts.append(_list("compute-sanitizer", details["sanitizers"]["tools"]))
    if "speed" in details:
        parts.append(_speed(context))
    stacked = peers.read(context.folder / layers.FILE)
    if stacked:
        parts.append(_rows("Layers on top of one another, training", "rnnfast", stacked))
    others = peers.read(context.folder / "peers.csv")
    if others:
        parts.append(_rows("Other kernels", "kernel", others))
    path = context.folder / "summary.md"
    table.write_text(path, "\n\n".join(parts) + "\n")
    return path


def _head(context: Context, facts: Mapping[str, Any]) -> str:
    git, gpu = facts["git"], facts["gpu"]
    commit = git["commit"][:12] + (", changed" if git["dirty"] else "") if git else "unknown"
    lines = [f"# gpu-check: {gpu['name'] if gpu else 'no device'}", ""]
    if context.dry_run:
        lines += [DRY, ""]
    lines.append(
        f"{facts['date']}; commit {commit}; torch {facts['torch']['version']}"
        + (f"; cuDNN {gpu['cudnn']}; compute capability {gpu['capability']}" if gpu else "")
    )
    return "\n".join(lines)


def _stages(results: Sequence[Result]) -> str:
    lines = ["| stage | | found | seconds of |", "|---|---|---|--:|"]
    for r in results:
        line = table.one_line(r.outcome.line)[:300]
        lines.append(
            f"| {r.name} | {r.outcome.state} | {line} | {r.seconds:.0f} / {r.allowed:.0f} |"
        )
    return "\n".join(lines)


def _rates(content: Mapping[str, Any], context: Context) -> str:
    """Measured beside what the model takes without a measurement."""
    lines = ["## Rates", ""]
    if not context.dry_run:
        lines += [
            f"Clock {content['clock_ghz']:.3f} GHz (nominal {content.get('nominal_ghz', 0):.3f}). "
            "Feed them back: `python -m benchmarks.latency --devices measured --rates rates.json`.",
            "",
        ]
    measured = "dry run" if context.dry_run else "measured"
    lines += [f"| constant | {measured} | low – high | model | is |", "|---|--:|--:|--:|---|"]
    known = _known(content)
    for name, entry in content["rates"].items():
        value, unit, by = known.get(name, (math.nan, "", ""))
        source = by or "assumed"
        spread = f"{entry['low']:.4g} – {entry['high']:.4g}"
        lines.append(
            f"| {name} ({unit}) | {entry['value']:.4g} | {spread} | {value:g} | {source} |"
        )
    for kind in ("skipped", "failed"):
        lines += [f"| {name} | {kind}: {why} | | | |" for name, why in content[kind].items()]
    return "\n".join(lines)


def _known(content: Mapping[str, Any]) -> dict[str, tuple[float, str, str]]:
    module: Any = _ext.load()
    if module is None or not hasattr(module, "cuda_rates"):
        return {}
    numbers = content.get("device_numbers")
    found: dict[str, tuple[float, str, str]] = module.cuda_rates(
        tuple(numbers) if numbers else "H100"
    )
    return found


def _speed(context: Context) -> str:
    lines = [f"## Against torch.nn ({'dry run, CPU' if context.dry_run else 'cuDNN'})", ""]
    lines += ["The ratio is torch.nn's time over ours: above 1 is faster.", ""]
    lines += [
        "| case | run | torch.nn ms | ours ms | ratio | quartiles | ours, µs a step |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for stem, rows in speed.read(context.folder).items():
        run = stem.removeprefix("rnnfast-").removesuffix("-partial")
        for row in rows:
            if not row.timed:
                lines.append(
                    f"| {row.case} | {run} | FAILED: {table.one_line(row.reason)} | | | | |"
                )
                continue
            steps = int(row.case.split("-")[1].removeprefix("T"))
            lines.append(
                f"| {row.case} | {run} | {row.torch_ms:.3f} | {row.candidate_ms:.3f} "
                f"| {row.ratio:.2f} | {row.ratio_q1:.2f} – {row.ratio_q3:.2f} "
                f"| {1e3 * row.candidate_ms / steps:.2f} |"
            )
    return "\n".join(lines)


def _rows(title: str, what: str, rows: Sequence[peers.Row]) -> str:
    lines = [f"## {title}", "", "Against torch.nn too: the ratio is its time over theirs.", ""]
    lines += [
        f"| {what} | case | dtype | torch.nn ms | its ms | ratio |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in rows:
        figures = (
            f"FAILED: {table.one_line(row.reason)} | | "
            if row.reason
            else f"{row.torch_ms:.3f} | {row.peer_ms:.3f} | {row.ratio:.2f} "
        )
        lines.append(f"| {row.peer} | {row.case} | {row.dtype} | {figures}|")
    return "\n".join(lines)


def _list(title: str, items: Sequence[str]) -> str:
    lines = [f"- {item}" for item in items[:MOST_LISTED]]
    if len(items) > MOST_LISTED:
        lines.append(f"- and {len(items) - MOST_LISTED} more")
    return "\n".join([f"## {title}", "", *lines])
