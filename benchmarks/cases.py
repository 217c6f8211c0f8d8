"""The shapes that are timed: three layers times six sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

# The layer's class has the same name in torch.nn and in rnnfast.
CLASS_NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}

# (T, B, I, H)
SIZES = (
    (32, 1024, 28, 32),  # many short sequences, small state
    (35, 32, 28, 256),  # a character language model
    (100, 64, 256, 256),
    (100, 1, 128, 128),  # one sequence: latency alone
    (100, 32, 512, 512),
    (50, 64, 1024, 1024),  # the recurrent weights outgrow a core's cache
)

_NAME = re.compile(r"(?P<cell>[a-z]+)-T(?P<T>\d+)-B(?P<B>\d+)-I(?P<I>\d+)-H(?P<H>\d+)")


@dataclass(frozen=True)
class Case:
    """One layer, one direction, biased, dense input of T steps, B sequences, I inputs, H units."""

    cell: str
    T: int
    B: int
    I: int
    H: int

    @property
    def name(self) -> str:
        """Stable: result files of different days are joined by it."""
        return f"{self.cell}-T{self.T}-B{self.B}-I{self.I}-H{self.H}"

    @property
    def class_name(self) -> str:
        return CLASS_NAMES[self.cell]

    @property
    def forward_flops(self) -> int:
        """The matrix products of one forward pass, a multiply-add counted as two."""
        return 2 * self.T * self.B * GATES[self.cell] * self.H * (self.I + self.H)

    @property
    def training_flops(self) -> int:
        """Forward, gradients of the inputs and gradients of the weights: one product each."""
        return 3 * self.forward_flops


CASES = tuple(Case(cell, *size) for cell in CLASS_NAMES for size in SIZES)


def parse(name: str) -> Case:
    """The case that `name` spells, such as `gru-T7-B3-I5-H11`; it need not be in CASES.

    Raises ValueError for anything else.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["cell"] not in CLASS_NAMES:
        raise ValueError(f"no case matches {name!r}; a name looks like {CASES[0].name!r}")
    return Case(match["cell"], *(int(match[letter]) for letter in "TBIH"))


def select(patterns: str) -> tuple[Case, ...]:
    """The cases that match one of `patterns`, in the order of CASES.

    patterns: separated by commas; each is a shell pattern (`*-H256`), a part of a name (`gru`), or
    the full name of any case, listed or not.
    Raises ValueError for a pattern that selects nothing.
    """
    chosen: list[Case] = []
    for pattern in patterns.split(","):
        found = [case for case in CASES if fnmatchcase(case.name, f"*{pattern}*")]
        exact = [case for case in found if case.name == pattern]
        chosen += exact or found or [parse(pattern)]
    listed = [case for case in CASES if case in chosen]
    return tuple(listed + [case for case in dict.fromkeys(chosen) if case not in CASES])
