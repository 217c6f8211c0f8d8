"""The shapes that are timed: three layers times six sizes; shapes by chance; one size swept."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
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

RANDOM_CASES, RANDOM_SEED = 60, 18
RANDOM_SIZES = {"T": (1, 256), "B": (1, 256), "I": (1, 1024), "H": (4, 1024)}
RANDOM_FLOPS = 2e10  # at most, in training


def by_chance(count: int, seed: int) -> Iterator[Case]:
    """Shapes for which nobody tuned: each layer in turn, the logarithm of each size uniform over
    RANDOM_SIZES, drawn again where training takes more than RANDOM_FLOPS."""
    draw, cells = random.Random(seed), tuple(CLASS_NAMES)
    for number in range(count):
        while True:
            drawn = [int(a * (b / a) ** draw.random() + 0.5) for a, b in RANDOM_SIZES.values()]
            case = Case(cells[number % len(cells)], *drawn)
            if case.training_flops <= RANDOM_FLOPS:
                break
        yield case


def _swept() -> Iterator[Case]:
    for cell in CLASS_NAMES:
        yield from (Case(cell, 20, 32, H, H) for H in (16, 32, 64, 128, 256, 512, 1024, 2048))
        yield from (Case(cell, 20, B, 128, 128) for B in (1, 4, 16, 64, 256, 1024, 4096))
        yield from (Case(cell, T, 8, 128, 128) for T in (1, 10, 100, 1000, 10_000))


# By name, what one run times.
SETS = {
    "cases": CASES,
    "random": tuple(by_chance(RANDOM_CASES, RANDOM_SEED)),
    "sweep": tuple(_swept()),
}


def parse(name: str) -> Case:
    """The case that `name` spells, such as `gru-T7-B3-I5-H11`; it need not be in CASES.

    Raises ValueError for anything else.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["cell"] not in CLASS_NAMES:
        raise ValueError(f"no case matches {name!r}; a name looks like {CASES[0].name!r}")
    return Case(match["cell"], *(int(match[letter]) for letter in "TBIH"))


def select(patterns: str, known: tuple[Case, ...] = CASES) -> tuple[Case, ...]:
    """The cases that match one of `patterns`, in the order of `known`.

    patterns: separated by commas; each is a shell pattern (`*-H256`), a part of a name (`gru`), or
    the full name of any case, listed or not.
    Raises ValueError for a pattern that selects nothing.
    """
    chosen: list[Case] = []
    for pattern in patterns.split(","):
        found = [case for case in known if fnmatchcase(case.name, f"*{pattern}*")]
        exact = [case for case in found if case.name == pattern]
        chosen += exact or found or [parse(pattern)]
    listed = [case for case in known if case in chosen]
    return tuple(listed + [case for case in dict.fromkeys(chosen) if case not in known])
