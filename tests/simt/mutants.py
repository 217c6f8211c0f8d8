"""Faults to plant in the resident CUDA kernels: what ``mutate.py`` applies one at a time.

A mutant replaces one occurrence of a text. Where it cannot change any result, ``equivalent`` says
why; such a mutant is still built and run, and must stay green.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import team_mutants

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "csrc/cuda"


@dataclass(frozen=True)
class Mutant:
    """``after`` in place of ``before``, the text at offset ``at`` of csrc/cuda/``file``, in
    ``function``."""

    kind: str
    file: str
    at: int
    line: int
    before: str
    after: str
    function: str = ""
    equivalent: str = ""
    program: str = "mutant"  # of tests/simt/cpp, that judges it

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
    program: str = "mutant"


_FUNCTION = re.compile(r"RNNFAST_DEVICE [^(;{]*?(\w+)\(")
SCAN = ("solo/forward.h", "solo/backward.h")
LOADS = ("device/load_slabs.h",)
BEFORE_ALL = r"\) return;\s+const int64_t before = first"  # of step 0
RULES = (
    Rule("barrier", r"\bsync_block\(\);", ";", SCAN),
    Rule("barrier", r"Team::wait\(\);", ";", SCAN),
    Rule("signal", r"Team::signal\(\);", ";", SCAN),
    Rule("owner mask", r"if \(!owns\(i, octet, j\)\) return;", "", SCAN),
    Rule("unit mask", r"!is_unit\(i, octet\) \|\| ", "", SCAN),
    Rule("unit mask", r"is_unit\(i, octet\) && (?=sequences)", "", SCAN),
    Rule("unit mask", r"if \(is_unit\(i, octet\)\) ", "", SCAN),
    Rule("unit mask", r"is_unit\(i, octet\) & ", "", SCAN),
    Rule("clamp", r"u < last \? u : last", "u", SCAN),
    Rule("end mask", rf"sequences\.alive\(j, s\)(?!{BEFORE_ALL})", "true", SCAN),
    Rule("end mask before all", rf"sequences\.alive\(j, s\)(?={BEFORE_ALL})", "true", SCAN),
    Rule("reset mask", r"\breset\[j\] != 0 \?", "false ?", SCAN),
    Rule("reset mask", r"\breset\[j\] == 0", "true", SCAN),
    Rule("two sets", r"kColumns \* stride - set", "0", SCAN),
    Rule("two sets", r"(?<=flip = )kColumns \* stride", "0", SCAN),
    Rule("step", r"\bat\[j\] [+-]= row_step;", ";", SCAN),
    Rule("step", r"reset_at\[j\] [+-]= reset_step;", ";", SCAN),
    Rule("step", r"turn_over\(\);", ";", SCAN),
    Rule("direction", r"sequences\.all\.reverse \? -", "false ? -", SCAN),
    Rule("range", r"s < 0", "false", SCAN),
    Rule("weight range", r"lo == 0 && ", "", ("solo/weights.h",)),
    Rule("weight mask", r"\(unit < H\) & \(column < H\);", "true;", SCAN),
    Rule("weight mask", r"\(unit < H\) & \(to < H\);", "true;", SCAN),
    Rule("weight range", r"if \(t < tiles && k < slabs\) (?=fill)", "", LOADS),
    Rule("weight range", r"= \(t < tiles\) & \(k < slabs\);", "= true;", LOADS),
    Rule("spill", r"if \(k \+ n < slabs\) (?=spill)", "", LOADS),
    Rule("chunks", r"length % kChunk == 0 && ", "", ("device/chunks.h",)),
    Rule("chunks", r" && reinterpret_cast<uintptr_t>\(first\) % 16 == 0", "", ("device/chunks.h",)),
    Rule("chunks", r"\(own & bit\) != 0", "false", ("device/chunks.h",)),
    Rule("chunks", r"\(lane\(\) & 4\) != 0", "false", ("device/chunks.h",)),
    Rule("chunks", r"at != nullptr \? four\.at\[k\] : 0", "four.at[k]", ("device/chunks.h",)),
    Rule("spill", r"lo > kHeld \? lo : kHeld", "lo", ("solo/weights.h",)),
    Rule("length", r"if \(b >= B\) return 0;", "", ("device/sequences.h",)),
    Rule("clamp", r"b < B \? b : B - 1", "b", ("device/sequences.h",)),
    Rule("owner mask", r"(?<=length_of\(own\), )b < B", "true", ("device/sequences.h",)),
    Rule("direction", r"reverse && s < w\.length", "false", ("device/sequences.h",)),
    Rule("chains", r"half\[n\] = keep \+ ", "half[n] = ", ("device/mma.h",)),
)

# (kind, file, function) of what changes no result, and why; "*": in every function.
EQUIVALENT = {
    ("signal", "solo/forward.h", "*"): "SoloTeam::signal does nothing: one block has no one "
    "to tell; the teams of several blocks will need it",
    ("signal", "solo/backward.h", "*"): "as in forward",
    ("owner mask", "solo/forward.h", "store_padding"): "the copies of the last unit and the last "
    "sequence write the same 0 once more",
    ("owner mask", "solo/backward.h", "store_padding"): "the copies of the last unit and the "
    "last sequence write a 0 before the steps do",
    ("end mask", "solo/backward.h", "fetch_reset"): "of a step that its sequence does not have "
    "nobody asks; what is read lies beside the tensor, where only AddressSanitizer looks",
    ("end mask before all", "solo/backward.h", "prefetch"): "a sequence without steps has an h0, "
    "too, and nobody uses what is read of it",
    ("unit mask", "solo/backward.h", "step_two_phases"): "a copy's candidate goes to a pad "
    "column, which meets weights of 0, and what it keeps is stored nowhere",
    (
        "owner mask",
        "device/sequences.h",
        "walk",
    ): "a copy of the last sequence walks and computes as that "
    "does, and would store the same once more: only ThreadSanitizer sees it",
    ("weight range", *LOADS, "*"): "of tiles and slabs that a warp does not have "
    "`where` finds nothing, which is 0",
    (
        "chunks",
        "device/chunks.h",
        "load",
    ): "what stands in place of the 0 outside the matrix belongs "
    "to no unit, or meets operands of 0: only an infinity would show",
}


def mutants() -> list[Mutant]:
    """All of them, in the order of the rules."""
    return [found for rule in rules() for file in rule.files for found in of_rule(rule, file)]


def rules() -> list[Rule]:
    return [*RULES, *(Rule(*rule, team_mutants.PROGRAM) for rule in team_mutants.RULES)]


def of_rule(rule: Rule, file: str) -> Iterator[Mutant]:
    """The mutants of a rule in one file, in the order of their lines."""
    text = (ROOT / KERNELS / file).read_text()
    for match in re.finditer(rule.pattern, text):
        start = text.rfind("\n", 0, match.start()) + 1
        line = text[start : text.find("\n", match.start())].strip()
        if line.startswith("//"):
            continue
        number = text.count("\n", 0, match.start()) + 1
        function = (_FUNCTION.findall(text, 0, match.start()) or [""])[-1]
        reason = _reason(rule.kind, file, function)
        found = (match.start(), number, match.group(), rule.after, function)
        yield Mutant(rule.kind, file, *found, reason, rule.program)


def _reason(kind: str, file: str, function: str) -> str:
    reasons = {**EQUIVALENT, **team_mutants.EQUIVALENT}
    return reasons.get((kind, file, function), reasons.get((kind, file, "*"), ""))
