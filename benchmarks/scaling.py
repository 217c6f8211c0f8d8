"""The two tables of docs/distributed.md, of what benchmarks.distributed wrote.

The first is measured. The second is arithmetic: the measured time of a process with its share of
the rows, plus a ring all-reduce, none of it hidden behind backward.
"""

from __future__ import annotations

from collections.abc import Sequence

from .distributed import EXCHANGE, NO_SYNC, ONE, PARTS, TWO, TWO_THREADS, Row

BYTES_PER_SECOND = 1.25e9  # 10 Gbit/s
MESSAGE_SECONDS = 50e-6  # a message from a process to the next
FLOAT = 4


def ring_ms(nbytes: int, processes: int) -> float:
    """All-reduce by a ring: 2 (n - 1) rounds, in each a message of 1/n of the bytes."""
    one = MESSAGE_SECONDS + nbytes / processes / BYTES_PER_SECOND
    return 2 * (processes - 1) * one * 1e3


def by_case(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.case, {})[row.way] = row
    return found


def measured(rows: Sequence[Row]) -> list[str]:
    """Milliseconds of a step; in brackets how many times as fast as one thread."""
    lines = [
        "| model | parameters | rows x steps | one process, one thread | one process, two threads "
        "| two processes | two, no exchange | all-reduce alone |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case, ways in by_case(rows).items():
        one = ways[ONE.name]
        times = [f"{one.ms:.1f}"]
        for way in (TWO_THREADS, TWO, NO_SYNC):
            row = ways[way.name]
            times.append(
                f"{row.ms:.1f} ({row.ratio:.2f}: {row.ratio_low:.2f}–{row.ratio_high:.2f})"
            )
        times.append(f"{ways[EXCHANGE.name].ms:.1f}")
        sizes = f"{one.parameters:,} | {one.batch} x {one.num_steps}"
        lines.append(f"| {case} | {sizes} | {' | '.join(times)} |")
    return lines


def reckoned(rows: Sequence[Row]) -> list[str]:
    """Speed-ups of n processes, by arithmetic."""
    lines = [
        "| model | processes | rows of each | its step, measured | all-reduce | speed-up, same "
        "minibatch | minibatch n times as large |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for case, ways in by_case(rows).items():
        one = ways[ONE.name]
        for part in PARTS:
            share = ways[part.name]
            ring = ring_ms(FLOAT * one.parameters, part.part)
            same = one.ms / (share.ms + ring)
            grown = part.part * one.ms / (one.ms + ring)
            lines.append(
                f"| {case} | {part.part} | {share.rows} | {share.ms:.1f} ms | {ring:.1f} ms "
                f"| {same:.2f} | {grown:.2f} |"
            )
    return lines
