"""Faults planted in the PTX of shipped kernels: what test_ptx.py must see, and in which words.

``python -m tests.simt.ptx.faults NAME IN.ptx OUT.ptx`` plants one.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """A text of one kernel replaced.

    Attributes:
        cell, math, of_pass, team: the kernel, in the smallest of its shapes.
        pattern, replacement: as re.sub takes them, over lines.
        at: which of the places, by number; the last is -1.
        message: what a run says, as a regular expression.
        case: what is run, as driver.cpp reads it, beside cell and math.
        slow: left to the slow tests: another fault shows the same, or nearly.
        race: the numbers may be right; ThreadSanitizer sees it.
    """

    name: str
    cell: str
    math: str
    of_pass: str
    pattern: str
    replacement: str
    at: int
    message: str
    case: str = "T=4,B=10,H=37,option=0,backward=-1"
    team: str = ""
    slow: bool = False
    race: bool = False

    @property
    def program(self) -> str:
        return f"{self.name}.thread" if self.race else self.name

    def plant(self, text: str) -> str:
        """Raises ValueError where the PTX has no such text."""
        begin = re.search(rf"^\.visible \.entry \S*_{self.of_pass}I", text, re.MULTILINE)
        if begin is None:
            raise ValueError(f"{self.name}: there is no kernel of the {self.of_pass} pass")
        end = text.find("\n.visible .entry", begin.end())
        end = len(text) if end < 0 else end
        places = list(re.compile(self.pattern, re.MULTILINE).finditer(text, begin.end(), end))
        if not places:
            raise ValueError(f"{self.name}: {self.pattern!r} is not in the PTX")
        place = places[self.at]
        return text[: place.start()] + place.expand(self.replacement) + text[place.end() :]

    def cases(self) -> list[str]:
        """Under several schedules: what a missing barrier does depends on it."""
        case = f"cell={self.cell},math={self.math},{self.case}"
        if self.team:
            case += f",team={self.team},blocks=3,teams=2"
        return [f"{case},seed={k}" for k in range(1, 7)]


_WRONG = r"off by"
_MMA = r"(mma\.sync\.aligned\S+\s+\{[^}]*\}, \{%r\d+, )(%r\d+), (%r\d+)"


def _grid(name: str, pattern: str, replacement: str, at: int, message: str) -> Fault:
    of = ("lstm", "bf16", "forward")
    return Fault(name, *of, pattern, replacement, at, message, team="grid", slow=True)


def _race(name: str, pattern: str, replacement: str, at: int) -> Fault:
    of, message = ("lstm", "bf16", "forward"), "data race"
    return Fault(name, *of, pattern, replacement, at, message, team="grid", slow=True, race=True)


def _cluster(name: str, pattern: str, replacement: str, at: int, message: str) -> Fault:
    of = ("gru_reset_before", "tf32", "forward")
    return Fault(name, *of, pattern, replacement, at, message, team="cluster", slow=True)


_DATA = "T=4,B=10,H=37,option=0"  # both passes

FAULTS = (
    Fault("no_barrier", "rnn_tanh", "fp16", "forward", r"bar\.sync\s+0;", "", -1, _WRONG),
    Fault("no_backward_barrier", "rnn_tanh", "fp16", "backward", r"bar\.sync\s+0;", "", -1, _WRONG,
          _DATA),
    Fault("some_at_the_barrier", "rnn_tanh", "fp16", "forward", r"bar\.sync\s+0;",
          "{ .reg .pred q; .reg .b32 t; mov.u32 t, %tid.x; setp.lt.u32 q, t, 32; @q bar.sync 0; }",
          -1, r"sync_block.*some_at_the_barrier\.ptx"),
    Fault("swapped_operands", "rnn_tanh", "fp16", "forward", _MMA, r"\1\3, \2", 8, _WRONG),
    Fault("other_product", "rnn_tanh", "fp16", "forward", r"f32\.f16\.f16\.f32",
          "f32.bf16.bf16.f32", 8, _WRONG, slow=True),
    Fault("far_matrix", "rnn_tanh", "fp16", "forward", r"(ldmatrix.*\[%r\d+)\]", r"\1+1048576]", 4,
          r"16 bytes of shared memory at offset \d+ of \S+, which has 2304 bytes, at far_matrix"),
    Fault("odd_matrix", "rnn_tanh", "fp16", "forward", r"(ldmatrix.*\[%r\d+)\]", r"\1+2]", 4,
          r"misaligned: 16 bytes of shared memory", slow=True),
    Fault("far_output", "rnn_tanh", "fp16", "forward", r"(st\.global\.u16\s+\[%rd\d+)\]",
          r"\1+268435456]", 0, r"2 bytes of global memory outside of every buffer: \d+ bytes past"),
    Fault("far_parameter", "rnn_tanh", "fp16", "forward", r"(ld\.param\.u64\s+%rd\d+, \[\w+\+)8\]",
          r"\g<1>272]", 0, r"8 bytes of parameters at offset 272 of 272"),
    Fault("input_written", "rnn_tanh", "fp16", "backward",
          r"ld\.global\.nc\.u16\s+%rs\d+, (\[%rd\d+\])", r"st.global.u16 \1, 0", -1,
          r"writes to \w+, which is an input", _DATA),
    Fault("constant_gates", "lstm", "bf16", "forward", r"ld\.global\.v2\.u32",
          "ld.global.nc.v2.u32", -1,
          r"writes what load_once has read|load_once of what was written", slow=True),
    _grid("narrow_release", r"red\.release\.gpu", "red.release.cta", -1,
          r"two blocks meet at an atomic of scope block"),
    _grid("narrow_acquire", r"ld\.acquire\.gpu", "ld.acquire.cta", 0,
          r"two blocks meet at an atomic of scope block"),
    _grid("no_release", r"red\.release\.gpu\.global\.add\.u32\s+\[%rd\d+\], %r\d+;", "", -1,
          r"it gives the launch up, at no_release\.ptx"),
    _grid("constant_operands", r"ld\.global\.cg\.v4", "ld.global.nc.v4", 0,
          r"load_once of what was written in this launch|writes what load_once has read"),
    _race("relaxed_addition", r"red\.release\.gpu", "red.relaxed.gpu", -1),
    _race("relaxed_look", r"ld\.acquire\.gpu", "ld.relaxed.gpu", 0),
    _cluster("not_rounded", r"cvt\.rna\.tf32\.f32", "mov.b32", -1, r"is no tf32 number"),
    _cluster("not_published", r"fence\.mbarrier_init\.release\.cluster;", "", 0,
             r"mbarrier_publish is missing after mbarrier_init"),
    _cluster("waits_for_its_own", r"try_wait\.parity\.acquire\.cluster\.shared::cta",
             "test_wait.parity.shared", 0, r"needs mbarrier_wait_cluster"),
    _cluster("sends_to_one", r"(mapa\.shared::cluster\.u32 there, %r\d+, )%r\d+;", r"\g<1>0;", 0,
             r"st\.async to rank 0 with an mbarrier of rank"),
    _cluster("expects_less", r"(arrive\.expect_tx\.shared::cta\.b64 s, \[%r\d+\], )%r\d+;",
             r"\g<1>16;", 0, r"a store_async of .* into this place is in flight|off by|deadlock"),
    _cluster("leaves_early", r"barrier\.cluster\.arrive\.release\.aligned;"
             r"(.|\n)*?barrier\.cluster\.wait\.acquire\.aligned;", "", -1,
             r"exits while the store_async of|a block that has exited"),
)  # fmt: skip


def fault(name: str) -> Fault:
    """Raises KeyError."""
    return {f.name: f for f in FAULTS}[name]


def main(arguments: list[str]) -> int:
    name, source, target = arguments
    text, made = fault(name).plant(Path(source).read_text()), Path(target)
    if not made.is_file() or made.read_text() != text:
        made.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
