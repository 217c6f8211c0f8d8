"""Faults planted in the kernels of cells of one's own, one at a time:

python -m tests.simt.own_faults NAME             ends with SEEN where something shows it, or 0
python -m tests.simt.own_faults NAME sanitized   the same with AddressSanitizer, preloaded
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rnnfast.cells import CELLS

from ..steps import test_own_cpu as own
from .own import WIDE, executing
from .own_cases import check_lengths

SEEN = 3
RULES = "scan/rules.h"
PRODUCT, ROWS, STEP, ENDS = (f"cuda/steps/{name}.h" for name in ("product", "rows", "step", "ends"))
FAULTS = {
    "no barrier before the values are read": (
        PRODUCT,
        "    values.publish();\n    sync_block();\n",
        "    values.publish();\n",
    ),
    "no barrier before the values are overwritten": (
        PRODUCT,
        "    values.multiply(sum);\n    sync_block();\n",
        "    values.multiply(sum);\n",
    ),
    "no barrier before the sums are added up": (
        PRODUCT,
        "    }\n  }\n  sync_block();\n  for (int o",
        "    }\n  }\n  for (int o",
    ),
    "a slice's sums lost": (PRODUCT, "s < Tile::kSlices", "s < Tile::kSlices - 1"),
    "values past an operand's end": (
        PRODUCT,
        "from_ != nullptr && k < segment.K",
        "from_ != nullptr",
    ),
    "sums of sequences that have ended": (PRODUCT, "!q.alive || u >=", "u >="),
    "no barrier before warps' parts are read": (
        ROWS,
        "    sync_block();\n    for (int i = 0; i < n; ++i) {\n      t[i] = of_warps[i *",
        "    for (int i = 0; i < n; ++i) {\n      t[i] = of_warps[i *",
    ),
    "no barrier before warps' parts are overwritten": (
        ROWS,
        "    sync_block();  // before another one takes the place\n",
        "",
    ),
    "a state read across a reset": (STEP, "  if (q.reset) return nullptr;\n", ""),
    "a gradient handed across a reset": (STEP, "return q.reset ? 0.0f : ", "return "),
    "the state that it begins with forgotten": (
        STEP,
        "(q.first ? rows.begin : rows.at)",
        "rows.at",
    ),
    "the output's gradient forgotten": (STEP, "from == nullptr ? 0.0f : load(from + j)", "0.0f"),
    "the slot of another step": (ENDS, "args.backward, b) & 1", "args.backward, b) + 1 & 1"),
    "lengths as they are given": (RULES, "within(lengths[b], T)", "lengths[b]"),
}
OUT_OF_BOUNDS = "values past an operand's end"
SAMPLE = ("no barrier before the values are read", "a state read across a reset")


def shown(edits: Sequence[Any], orders: int, check: Callable[[int], None], **how: Any) -> bool:
    """Whether ``check`` of an order of threads shows what the edits planted: by wrong numbers, or
    by what the executor says."""
    with executing(*edits, **how) as settings:
        for seed in range(orders):
            settings.simt_begin(seed)
            try:
                check(seed)
            except (AssertionError, RuntimeError) as error:
                print(error)
                return True
    return False


def shows(name: str, sanitized: bool = False) -> bool:
    def check(seed: int) -> None:
        for call in (
            {"H": 44, "T": 3, "ends": True, "reverse": seed % 2 == 1},
            {"H": 70, "B": 11, "T": 2},
        ):
            own.check(CELLS["layer_norm_lstm"], torch.float32, "executed", **call)
        check_lengths(CELLS["layer_norm_lstm"], "executed", seed % 2 == 1)

    edits = [WIDE, *([FAULTS[name]] if name else [])]
    return shown(edits, 3, check, sanitized=sanitized)


def end(shows: Callable[[], bool]) -> None:
    """Ends the process with what ``shows`` says of a fault, memory without a value poisoned."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    sys.exit(SEEN if shows() else 0)


if __name__ == "__main__":
    end(lambda: shows(sys.argv[1], "sanitized" in sys.argv))
