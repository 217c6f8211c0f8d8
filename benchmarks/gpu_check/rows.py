"""A row of layers.csv and of peers.csv: something that was timed against torch.nn."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import table


class Row(NamedTuple):
    """ratio: torch.nn's time over the other's; above 1 the other is faster."""

    peer: str
    case: str
    dtype: str
    torch_ms: float = float("nan")
    peer_ms: float = float("nan")
    ratio: float = float("nan")
    reason: str = ""


def write(rows: Sequence[Row], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    table.write_text(path, text.getvalue())


def read(path: Path) -> list[Row]:
    """Of a file that `write` made; none where it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        lines = list(csv.reader(file))[1:]
    return [
        Row(peer, case, dtype, float(torch_ms), float(peer_ms), float(ratio), reason)
        for peer, case, dtype, torch_ms, peer_ms, ratio, reason in lines
    ]


def section(title: str, what: str, rows: Sequence[Row]) -> str:
    lines = [f"## {title}", "", "Against torch.nn too: the ratio is its time over theirs.", ""]
    lines += [
        f"| {what} | case | dtype | torch.nn ms | its ms | ratio |",
        "|---|---|---|--:|--:|--:|",
    ]
    for row in rows:
        figures = (
            f"FAILED: {table.one_line(row.reason)[:120]} | | "
            if row.reason
            else f"{row.torch_ms:.3f} | {row.peer_ms:.3f} | {row.ratio:.2f} "
        )
        lines.append(f"| {row.peer} | {row.case} | {row.dtype} | {figures}|")
    return "\n".join(lines)
