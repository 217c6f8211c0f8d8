"""Faults to plant in the resident CUDA kernels: what ``mutate.py`` applies one at a time.

A mutant replaces one occurrence of a text. Where it cannot change any result, ``equivalent`` says
why; such a mutant is still built and run, and must stay green.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "csrc/cuda"


@dataclass(frozen=True)
class Mutant:
    """``after`` in place of ``before``, the text at offset ``at`` of csrc/cuda/``file``."""

    kind: str
    file: str
    at: int
    line: int
    before: str
    after: str
    equivalent: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.file}:{self.line}"

    def apply(self, text: str) -> str:
        assert text.startswith(self.before, self.at)
        return text[: self.at] + self.after + text[self.at + len(self.before) :]


@dataclass(frozen=True)
class Rule:
    """Every occurrence of a pattern in the named files is a mutant."""

    kind: str
    pattern: str
    after: str
    files: tuple[str, ...]


SCAN = ("sequence_forward.h", "sequence_backward.h")
RULES = (
    Rule("barrier", r"\bsync_block\(\);", ";", SCAN),
    Rule("barrier", r"Team::wait\(\);", ";", SCAN),
    Rule("signal", r"Team::signal\(\);", ";", SCAN),
    Rule("owner mask", r"if \(!owns\(i, octet, j\)\) return;", "", SCAN),
    Rule("unit mask", r"!is_unit\(i, octet\) \|\| ", "", SCAN),
    Rule("unit mask", r"is_unit\(i, octet\) && (?=sequences)", "", SCAN),
    Rule("unit mask", r"if \(is_unit\(i, octet\)\) ", "", SCAN),
    Rule("clamp", r"u < last \? u : last", "u", SCAN),
    Rule("end mask", r"sequences\.alive\(j, s\)", "true", SCAN),
    Rule("reset mask", r"reset_now\[j\] \?", "false ?", SCAN),
    Rule("reset mask", r"reset_next\[j\] \?", "false ?", SCAN),
    Rule("reset mask", r"reset\[j\] \?", "false ?", SCAN),
    Rule("reset mask", r"!reset\[j\]", "true", SCAN),
    Rule("two sets", r"\(set & 1\)", "0", SCAN),
    Rule("range", r"s >= sequences\.T", "false", SCAN),
    Rule("range", r"s < 0", "false", SCAN),
    Rule("weight mask", r"if \(unit >= H \|\| column >= H\) return 0;", "", SCAN),
    Rule("weight mask", r"if \(unit >= H \|\| to >= H\) return 0;", "", SCAN),
    Rule("weight range", r"if \(t < tiles && k < slabs\) (?=fill)", "", ("weights.h",)),
    Rule("spill", r"lo > kHeld \? lo : kHeld", "lo", ("weights.h",)),
    Rule("length", r"if \(b >= B\) return 0;", "", ("sequences.h",)),
    Rule("clamp", r"b < B \? b : B - 1", "b", ("sequences.h",)),
    Rule("owner mask", r"outside_\[j\] = b >= B", "outside_[j] = false", ("sequences.h",)),
    Rule("direction", r"reverse && s < length\[j\]", "false", ("sequences.h",)),
    Rule("chains", r"half\[n\] = keep \+ ", "half[n] = ", ("mma.h",)),
)

# (kind, file, the text of the line) of what changes nothing, and why.
EQUIVALENT = {
    ("signal", "sequence_forward.h", "*"): "SoloTeam::signal does nothing: one block has no one "
    "to tell; the teams of several blocks will need it",
    ("signal", "sequence_backward.h", "*"): "as in forward",
    ("unit mask", "sequence_forward.h", "if (is_unit(i, octet)) row[unit(i, octet)]"): "the pad "
    "columns that it keeps at 0 meet weights of 0: only an infinity would show",
    ("unit mask", "sequence_backward.h", "if (is_unit(i, octet) && sequences.alive(j, s)) {"): (
        "what it computes for a unit that does not exist is stored nowhere"
    ),
}


def mutants() -> list[Mutant]:
    """All of them, in the order of the rules."""
    return [found for rule in RULES for file in rule.files for found in _of(rule, file)]


def _of(rule: Rule, file: str) -> Iterator[Mutant]:
    text = (ROOT / KERNELS / file).read_text()
    for match in re.finditer(rule.pattern, text):
        start = text.rfind("\n", 0, match.start()) + 1
        line = text[start : text.find("\n", match.start())].strip()
        if line.startswith(("//", "RNNFAST_DEVICE")):
            continue
        number = text.count("\n", 0, match.start()) + 1
        reason = _reason(rule.kind, file, line)
        yield Mutant(rule.kind, file, match.start(), number, match.group(), rule.after, reason)


def _reason(kind: str, file: str, line: str) -> str:
    for (k, f, text), reason in EQUIVALENT.items():
        if (k, f) == (kind, file) and (text == "*" or line.startswith(text)):
            return reason
    return ""
