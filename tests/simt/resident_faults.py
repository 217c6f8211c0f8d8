"""Faults planted in the resident kernels of cells of one's own, one at a time:

python -m tests.simt.resident_faults NAME    ends with SEEN where something shows it, or 0
"""

from __future__ import annotations

import sys

import torch

from .. import own_cells
from ..steps import test_own_cpu as own
from .own_faults import end, shown

BOTH, FORWARD, BACKWARD = (f"cuda/steps/resident{end}.h" for end in ("", "_forward", "_backward"))
FAULTS = {
    "no barrier after a forward step": (
        FORWARD,
        "    load_inputs(s + 1);\n    sync_block();\n",
        "    load_inputs(s + 1);\n",
    ),
    "one set of operands for two, forward": (FORWARD, "(kColumns * stride - set)", "set"),
    "the first step's reset forgotten": (
        FORWARD,
        "    hand_over();\n    use_resets();\n    load_inputs(0);",
        "    hand_over();\n    load_inputs(0);",
    ),
    "an operand across a reset": (FORWARD, "s[k] = reset[j] != 0 ? 0.0f : ", "s[k] = "),
    "a state that goes on past the end": (FORWARD, "if (sequences.alive(j, s)) state", "state"),
    "octets changed places": (FORWARD, "return is_last(tile) ? half : tile % 2;", "return half;"),
    "no barrier before the gradients' product": (
        BACKWARD,
        "    load_inputs(s - 1);\n    sync_block();\n",
        "    load_inputs(s - 1);\n",
    ),
    "a gradient across a reset": (BACKWARD, "own[k] = was_reset ? 0.0f : ", "own[k] = "),
    "a state read across a reset": (BACKWARD, "    if (reset[j] != 0) return 0.0f;\n", ""),
    "the state that it began with forgotten": (
        BACKWARD,
        "    if (s == 0) return",
        "    if (s < 0) return",
    ),
    "the outputs' gradients forgotten": (
        BACKWARD,
        "own[k] + dy[i][octet][j][k]",
        "own[k]",
    ),
    "the gradients of padding": (
        BACKWARD,
        "      if (!sequences.alive(j, s)) return;\n      float (&own)",
        "      float (&own)",
    ),
    "a scale left in": (BACKWARD, "unscale = 1.0f / scale", "unscale = 1.0f"),
    "a parameter of another unit": (BOTH, "params + unit(i, octet)", "params + lane() / 4"),
    "gradients of gates not cleared": (
        BOTH,
        "if (!Own::kBackward && !args.training) return;",
        "return;",
    ),
}
SAMPLE = ("the first step's reset forgotten", "no barrier before the gradients' product")


def shows(name: str) -> bool:
    dtypes = [torch.float32, torch.float16] if name in ("", "a scale left in") else [torch.float32]

    def check(seed: int) -> None:
        call = {"H": 20, "ends": True, "reverse": seed == 1, "all_states": True}
        for spec in (own_cells.gru, own_cells.peephole):
            for dtype in dtypes:
                own.check(spec, dtype, "executed", **call)

    return shown([FAULTS[name]] if name else [], 2, check, plan="resident")


if __name__ == "__main__":
    end(lambda: shows(sys.argv[1]))
