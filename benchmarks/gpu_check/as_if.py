"""The check as on a machine with a device, where there is none (`first.py --as-if 9.0`).

Each stage goes as far as its processes first touch the device. It is right where every one of them
has ended for want of it, and for nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .checks import counts
from .children import last_line, read
from .stages import FAILED, MISSING, OK, Context, Outcome, Stage

# As torch, the CUDA runtime and the scripts here say it.
NO_DEVICE = re.compile(
    r"no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device|not compiled with CUDA"
    r"|driver version is insufficient|torch sees (none|no (GPU|CUDA device))",
    re.IGNORECASE,
)
MAY_LACK = ("memcheck", "sanitizers", "peers")  # their tools; the others have all that they need
_PYTEST = re.compile(r"^\$ \S+ -m pytest ")
_SKIPPED = re.compile(r"^SKIPPED \[\d+\] .*", re.MULTILINE)


def rehearsed(stages: Sequence[Stage]) -> list[Stage]:
    """The stages, each judged by why its processes ended."""
    return [replace(stage, run=_Rehearsed(stage)) for stage in stages]


class _Rehearsed:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __call__(self, context: Context, seconds: float) -> Outcome:
        before = set(context.folder.rglob("*.txt"))
        outcome = self.stage.run(context, seconds)
        logs = sorted(set(context.folder.rglob("*.txt")) - before)
        if outcome.state == MISSING and self.stage.name in MAY_LACK:
            return outcome
        return judge(outcome, {_name(log, context.folder): read(log) for log in logs})


def _name(log: Path, folder: Path) -> str:
    return str(log.relative_to(folder).with_suffix(""))


def judge(outcome: Outcome, outputs: Mapping[str, str]) -> Outcome:
    """What a stage says is right without a device, given the outputs of its processes."""
    if not outputs:
        return Outcome(FAILED, f"it started nothing: {outcome.line}")
    wrong = {name: why for name, text in outputs.items() if (why := other_end(text)) is not None}
    if wrong:
        told = "; ".join(f"{name}: {why}" for name, why in wrong.items())
        return Outcome(FAILED, f"ended otherwise than for want of a device: {told}")
    return Outcome(OK, f"{len(outputs)} of {len(outputs)} ended for want of a device")


def other_end(text: str) -> str | None:
    """None where a process has ended for want of a device; else how."""
    last = last_line(text)
    if not _PYTEST.match(text):
        return None if NO_DEVICE.search(last) else last or "it said nothing"
    reasons = _SKIPPED.findall(text)
    others = [line for line in reasons if not NO_DEVICE.search(line)]
    if others:
        return others[0]
    only_skipped = reasons and set(counts(last)) == {"skipped"}
    return None if only_skipped else last or "it said nothing"
