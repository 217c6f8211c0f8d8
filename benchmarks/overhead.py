"""What a call of rnnfast costs on top of torch.nn where both run torch's own kernels."""

from __future__ import annotations

from collections.abc import Sequence

from .cases import CLASS_NAMES, Case
from .table import Row, one_line

# Calls with next to nothing to compute. Microseconds drown in the noise of a call that takes
# milliseconds; here they show.
BARE = tuple(Case(cell, 1, 1, 1, 1) for cell in CLASS_NAMES)

PERCENT_LIMIT = 3.0
MICROSECONDS_LIMIT = 30.0


def verdict(low: float, high: float, limit: float) -> str:
    """`within` or `over` where the whole interval is, `unclear` where it straddles the limit."""
    return "within" if high <= limit else "over" if low > limit else "unclear"


def percent_verdict(row: Row) -> str:
    """`-` for a bare call, of which any overhead is a large share."""
    if is_bare(row):
        return "-"
    return verdict(*row.overhead_percent_interval, PERCENT_LIMIT)


def is_bare(row: Row) -> bool:
    return row.case in {case.name for case in BARE}


def microseconds_verdict(row: Row) -> str:
    return verdict(row.overhead_low_us, row.overhead_high_us, MICROSECONDS_LIMIT)


HEADER = (
    f"{'case':26} {'torch ms':>9} {'pairs':>6}  "
    f"{'µs a call':>9} {'95 % interval':>19} {'≤ 30 µs':8}"
    f"{'%':>7} {'95 % interval':>16} {'≤ 3 %':8}"
)


def line(row: Row) -> str:
    if not row.timed:
        return f"{row.case:26} FAILED: {row.reason}"
    low, high = row.overhead_percent_interval
    return (
        f"{row.case:26} {row.torch_ms:9.3f} {row.pairs:6d}  {row.overhead_us:9.1f} "
        f"{row.overhead_low_us:9.1f}…{row.overhead_high_us:<9.1f} {microseconds_verdict(row):8}"
        f"{row.overhead_percent:7.2f} {low:7.2f}…{high:<8.2f} {percent_verdict(row):8}"
    )


def summary(rows: Sequence[Row]) -> str:
    timed = [row for row in rows if row.timed]
    parts = []
    for name, judge in (("30 µs", microseconds_verdict), ("3 %", percent_verdict)):
        counts = dict.fromkeys(("within", "unclear", "over"), 0)
        for row in timed:
            if judge(row) in counts:
                counts[judge(row)] += 1
        parts.append(f"{name}: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    return "Budget of a call: " + "; ".join(parts)


def markdown(rows: Sequence[Row]) -> list[str]:
    """The lines of a table for the report, and the summary."""
    return [
        "| case | torch.nn ms | µs a call | 95 % | ≤ 30 µs | % | 95 % | ≤ 3 % |",
        "|---|--:|--:|--:|---|--:|--:|---|",
        *(_markdown_line(row) for row in rows),
        "",
        summary(rows),
    ]


def _markdown_line(row: Row) -> str:
    if not row.timed:
        return f"| {row.case} | failed, not timed: {one_line(row.reason)} | | | | | | |"
    low, high = row.overhead_percent_interval
    return (
        f"| {row.case} | {row.torch_ms:.3f} | {row.overhead_us:.1f} | "
        f"{row.overhead_low_us:.1f} to {row.overhead_high_us:.1f} | {microseconds_verdict(row)} | "
        f"{row.overhead_percent:.2f} | {low:.2f} to {high:.2f} | {percent_verdict(row)} |"
    )
