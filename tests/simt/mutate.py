"""Plants one fault after the other in the resident CUDA kernels and demands that each is seen.

``python -m tests.simt.mutate`` runs all of them, ``--list`` names them, ``--match TEXT`` picks,
``--every N`` takes each N-th. It ends with 1 where a fault stayed unseen, or where one that should
change nothing was.

A mutant is a copy of csrc with one text replaced; tests/simt/cpp/mutant.cpp is compiled against it
and run on the executor, or mutant_team.cpp, part by part until one sees it. ``--sanitize thread``
(or ``address,undefined``) compiles it so.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rnnfast._build import host
from rnnfast.inspect.table import columns

from . import team_mutants
from .mutants import KERNELS, ROOT, Mutant, mutants

FOLDER = ROOT / "build" / "mutants"
OWN = FOLDER / os.environ.get("PYTEST_XDIST_WORKER", "alone")  # of each process of a test run
FLAGS = ["-std=c++20", "-O1", "-w", "-DRNNFAST_SIMT"]
_REPORTED = re.compile("Sanitizer: |runtime error: ")  # a sanitizer's own words
SECONDS = 120  # a mutant may wait for ever


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant | None
    seen: bool
    how: str

    @property
    def right(self) -> bool:
        expected = self.mutant is not None and not self.mutant.equivalent
        return self.seen == expected

    @property
    def by(self) -> str:
        """What saw it."""
        if not self.seen:
            return "nothing"
        if self.how.startswith("signal"):
            return "memory's end"
        if self.how.startswith("did not end"):
            return "time"
        return "numbers" if " off by " in self.how else "executor"


def compiler() -> list[str]:
    """Raises RuntimeError where there is none."""
    found, why = host.find_compiler(os.environ)
    if found is None:
        raise RuntimeError(why)
    return list(found.command)


def flags(sanitize: str) -> list[str]:
    """The compiler's, with these sanitizers if any."""
    found = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g1"] if sanitize else []
    return [*FLAGS, *found]


def executor(sanitize: str = "") -> Path:
    """The executor's objects, compiled once, in one relocatable file."""
    folder = FOLDER / (sanitize.partition(",")[0] or "plain")
    folder.mkdir(parents=True, exist_ok=True)
    sources = [p for p in sorted(ROOT.glob("tests/simt/*.cpp")) if p.name != "module.cpp"]
    sources.append(ROOT / "csrc/scan/problem.cpp")
    newest = max(p.stat().st_mtime for p in [*sources, *ROOT.glob("tests/simt/*.h")])
    made = folder / "executor.o"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists() or made.stat().st_mtime < newest:
            objects = []
            for source in sources:
                objects.append(str(folder / f"{source.stem}.o"))
                command = [*compiler(), *flags(sanitize), *_includes(ROOT)]
                _run([*command, "-c", str(source), "-o", objects[-1]])
            _run([*compiler(), "-r", "-nostdlib", *objects, "-o", str(made)])
    return made


def judge(mutant: Mutant | None, program: str = "mutant", sanitize: str = "") -> Outcome:
    """Builds and runs the kernels with this fault; None: as they are, by this program."""
    if mutant is not None:
        program = mutant.program
    copy = OWN / "tree"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    if mutant is not None:
        path = copy / KERNELS / mutant.file
        path.write_text(mutant.apply(path.read_text()))
    for part in _parts(program, mutant):
        outcome = _judge(mutant, program, sanitize, part)
        if outcome.seen:
            break
    return outcome


def _parts(program: str, mutant: Mutant | None) -> list[int]:
    """Of the program, which are compiled one by one."""
    if program != team_mutants.PROGRAM:
        return [0]
    if mutant is None:
        return list(range(team_mutants.PARTS))
    return team_mutants.parts(mutant.file, mutant.function)


def _judge(mutant: Mutant | None, program: str, sanitize: str, part: int) -> Outcome:
    """By one part of the program, against the copy of csrc."""
    built_at = OWN / program
    source = ROOT / f"tests/simt/cpp/{program}.cpp"
    quick = [] if sanitize else ["-O0"]  # most of the time is the compiler's
    command = [*compiler(), *flags(sanitize), *quick, f"-DRNNFAST_PART={part}"]
    command += [*_includes(OWN / "tree"), str(source), str(executor(sanitize))]
    built = subprocess.run(
        [*command, "-pthread", "-o", str(built_at)], capture_output=True, text=True
    )
    if built.returncode != 0:
        raise RuntimeError(f"{mutant and mutant.name} does not compile:\n{built.stderr[-2000:]}")
    limit = SECONDS * (10 if sanitize else 1)
    try:
        ran = subprocess.run([built_at], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Outcome(mutant, True, f"did not end within {limit} s")
    how = (ran.stdout + ran.stderr).strip().splitlines()
    how = [line for line in how if _REPORTED.search(line)] or how
    if ran.returncode < 0:
        how = [f"signal {-ran.returncode}"]
    return Outcome(mutant, ran.returncode != 0, how[0] if how else "")


def table(outcomes: list[Outcome]) -> str:
    """By kind: how many were planted, and what saw how many of them."""
    kinds: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        if outcome.mutant is not None:
            kinds.setdefault(outcome.mutant.kind, Counter())[outcome.by] += 1
    header = ["kind", "planted", "numbers", "executor", "memory's end", "time", "nothing"]
    lines = [[kind, by.total(), *(by[name] for name in header[2:])] for kind, by in kinds.items()]
    return columns(header, lines)


def _includes(tree: Path) -> list[str]:
    tests = [ROOT / "tests", ROOT / "tests/cpp", ROOT / "tests/simt/cpp"]
    return [f"-I{p}" for p in [tree / "csrc", *tests]]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name them and end")
    parser.add_argument("--match", default="", help="only those with this text in PROGRAM:NAME")
    parser.add_argument("--every", type=int, default=1, help="each N-th of them")
    parser.add_argument("--sanitize", default="", help="compile with it: thread, address,undefined")
    asked = parser.parse_args()
    chosen = [m for m in mutants() if asked.match in f"{m.program}:{m.name}"][:: asked.every]
    if asked.list:
        print("\n".join(f"{m.name}  {m.before!r} -> {m.after!r}" for m in chosen))
        return 0
    outcomes = []
    unchanged = [(None, program) for program in sorted({m.program for m in chosen})]
    for mutant, program in [*unchanged, *((m, m.program) for m in chosen)]:
        outcome = judge(mutant, program, asked.sanitize)
        outcomes.append(outcome)
        name = f"unchanged {program}" if mutant is None else mutant.name
        verdict = ("caught" if outcome.seen else "not seen") + ("" if outcome.right else "  WRONG")
        reason = f" ({mutant.equivalent})" if mutant is not None and mutant.equivalent else ""
        print(f"{name}: {verdict}{reason}: {outcome.how}", flush=True)
    print(table(outcomes))
    return 0 if all(outcome.right for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
