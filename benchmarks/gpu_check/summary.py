"""The page that says what a check found: summary.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import table
from .children import read
from .stages import Context, Result

DRY = "**Dry run: no device was used. No number here says anything about a GPU.**"
AS_IF = "**No device was there: how far each stage comes without one. Nothing was measured.**"
MOST = 11_000  # characters of the page
MOST_LISTED = 10
# What a kernel says that has waited for too long (csrc/cuda/device), and the program of the rates.
_BARRIER = re.compile(r"rnnfast: ([^`'\"\n]{1,80}) timed out")


def page(context: Context, results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """Also while stages are left: what is not there yet is not in it."""
    parts = [_head(context, facts), _stages(results), *_timed_out(context.folder)]
    parts += [result.outcome.section for result in results if result.outcome.section]
    return fit("\n\n".join(parts) + "\n")


def fit(text: str) -> str:
    """Its beginning, where it is too long to be read at once."""
    if len(text) <= MOST:
        return text
    whole_lines = text[:MOST].rpartition("\n")[0]
    return f"{whole_lines}\n\nThe page is longer: the rest is in the archive's files.\n"


def _head(context: Context, facts: Mapping[str, Any]) -> str:
    git, gpu = facts.get("git"), facts.get("gpu")
    commit = git["commit"][:12] + (", changed" if git["dirty"] else "") if git else "unknown"
    lines = [f"# gpu-check: {gpu['name'] if gpu else 'no device'}"]
    if context.dry_run:
        lines += ["", DRY]
    if context.as_if:
        lines += ["", AS_IF]
    if "date" in facts:
        lines.append(
            f"\n{facts['date']}; commit {commit}; Python {facts['python']}; "
            f"torch {facts['torch']['version']}"
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


def _timed_out(folder: Path) -> list[str]:
    """The barriers that any output names, and how often."""
    found = Counter(
        f"{name}, in {log.relative_to(folder)}"
        for log in sorted(folder.rglob("*.txt"))
        for name in _BARRIER.findall(read(log))
    )
    lines = [f"{name} ({count} times)" for name, count in found.items()]
    return [listed("Waits that timed out", lines)] if lines else []


def listed(title: str, items: Sequence[str]) -> str:
    """A section with a line each, of the first few."""
    lines = [f"- {table.one_line(item)[:200]}" for item in items[:MOST_LISTED]]
    if len(items) > MOST_LISTED:
        lines.append(f"- and {len(items) - MOST_LISTED} more")
    return "\n".join([f"## {title}", "", *lines])
