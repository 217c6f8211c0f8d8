"""Plants one fault after the other in the resident CUDA kernels and demands that each is seen.

``python -m tests.simt.mutate`` runs all of them, ``--list`` names them, ``--match TEXT`` picks,
``--every N`` takes each N-th. It ends with 1 where a fault stayed unseen, or where one that should
change nothing was.

A mutant is a copy of csrc with one text replaced; tests/simt/cpp/mutant.cpp is compiled against it
and run on the executor.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rnnfast._build import host

from .mutants import KERNELS, ROOT, Mutant, mutants

FOLDER = ROOT / "build" / "mutants"
FLAGS = ["-std=c++20", "-O1", "-w", "-DRNNFAST_SIMT"]
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


def compiler() -> list[str]:
    """Raises RuntimeError where there is none."""
    found, why = host.find_compiler(os.environ)
    if found is None:
        raise RuntimeError(why)
    return list(found.command)


def executor() -> Path:
    """The executor's objects, compiled once, in one relocatable file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    sources = [p for p in sorted(ROOT.glob("tests/simt/*.cpp")) if p.name != "module.cpp"]
    sources.append(ROOT / "csrc/scan/problem.cpp")
    newest = max(p.stat().st_mtime for p in [*sources, *ROOT.glob("tests/simt/*.h")])
    made = FOLDER / "executor.o"
    if not made.exists() or made.stat().st_mtime < newest:
        objects = []
        for source in sources:
            objects.append(str(FOLDER / f"{source.stem}.o"))
            _run([*compiler(), *FLAGS, *_includes(ROOT), "-c", str(source), "-o", objects[-1]])
        _run([*compiler(), "-r", "-nostdlib", *objects, "-o", str(made)])
    return made


def judge(mutant: Mutant | None) -> Outcome:
    """Builds and runs the kernels with this fault; None: as they are."""
    copy = FOLDER / "tree"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    if mutant is not None:
        path = copy / KERNELS / mutant.file
        path.write_text(mutant.apply(path.read_text()))
    program = FOLDER / "mutant"
    source = ROOT / "tests/simt/cpp/mutant.cpp"
    command = [*compiler(), *FLAGS, *_includes(copy), str(source), str(executor())]
    built = subprocess.run(
        [*command, "-pthread", "-o", str(program)], capture_output=True, text=True
    )
    if built.returncode != 0:
        raise RuntimeError(f"{mutant and mutant.name} does not compile:\n{built.stderr[-2000:]}")
    try:
        ran = subprocess.run([program], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome(mutant, True, f"did not end within {SECONDS} s")
    how = (ran.stdout + ran.stderr).strip().splitlines()
    if ran.returncode < 0:
        how = [f"signal {-ran.returncode}"]
    return Outcome(mutant, ran.returncode != 0, how[0] if how else "")


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
    parser.add_argument("--match", default="", help="only those whose name has this text")
    parser.add_argument("--every", type=int, default=1, help="each N-th of them")
    asked = parser.parse_args()
    chosen = [m for m in mutants() if asked.match in m.name][:: asked.every]
    if asked.list:
        print("\n".join(f"{m.name}  {m.before!r} -> {m.after!r}" for m in chosen))
        return 0
    wrong = 0
    for mutant in [None, *chosen]:
        outcome = judge(mutant)
        wrong += not outcome.right
        name = "unchanged" if mutant is None else mutant.name
        verdict = ("caught" if outcome.seen else "not seen") + ("" if outcome.right else "  WRONG")
        reason = f" ({mutant.equivalent})" if mutant is not None and mutant.equivalent else ""
        print(f"{name}: {verdict}{reason}: {outcome.how}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
