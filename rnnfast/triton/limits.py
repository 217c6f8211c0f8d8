"""How large a resident kernel may get: measured by compiling, kept in limits.json.

For each architecture, math and cell the file has the largest tile of hidden units (a power of two)
at which forward and backward compile without a spill, with how many warps, and how many bytes of
shared memory each asks for. ``python -m rnnfast inspect --backend triton --limits`` measures anew.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("limits.json")


class Limit(NamedTuple):
    """Of one pass: the largest tile of hidden units, warps, bytes of shared memory at it."""

    block_h: int
    num_warps: int
    shared: int


Table = dict[tuple[str, str, str, str], Limit]  # by architecture, math, cell, direction


@functools.cache
def table() -> Table:
    """What was measured."""
    found: Table = {}
    for arch, by_math in json.loads(FILE.read_text(encoding="utf-8"))["limits"].items():
        for math, by_cell in by_math.items():
            for cell, by_direction in by_cell.items():
                for direction, limit in by_direction.items():
                    found[arch, math, cell, direction] = Limit(*limit)
    return found


def measured_arch(arch: str) -> str | None:
    """The architecture of the table that stands for ``arch``: itself or the nearest older one.

    An AMD GPU stands for itself only.
    """
    known = {key[0] for key in table()}
    if arch in known or arch.startswith("gfx"):
        return arch if arch in known else None
    older = [a for a in known if a.isdigit() and int(a) <= int(arch)]
    return max(older, key=int, default=None)


def limit_of(arch: str, math: str, cell: str, direction: str, shared: int) -> Limit | None:
    """The limit on a device of this architecture and so many bytes of shared memory a program.

    Where the measured tile asks for more shared memory than there is, it is halved until it fits;
    half a tile is taken to ask for half as much, and asks for less. None: never resident.
    """
    nearest = measured_arch(arch)
    limit = table().get((nearest, math, cell, direction)) if nearest is not None else None
    while limit is not None and limit.shared > shared:
        smaller = limit.block_h // 2
        limit = Limit(smaller, limit.num_warps, limit.shared // 2) if smaller >= 16 else None
    return limit
