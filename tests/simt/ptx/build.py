"""Builds programs that run translated PTX, by ninja, in build/ptx.

``program(name)`` builds one and gives its path. Everything that can be built stands in one ninja
file, so that a later run finds it: .cu → nvcc → .ptx → translate.py → .cpp → .o → linker.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from rnnfast._build import host
from rnnfast._build.nvcc import find_nvcc

from . import handwritten
from .faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
FOLDER = ROOT / "build" / "ptx"
CELLS = {
    "rnn_tanh": "RnnTanh",
    "lstm": "Lstm",
    "gru": "Gru",
    "gru_reset_before": "GruResetBefore",
}
MATHS = {"bf16": "MmaBf16", "fp16": "MmaF16", "tf32": "MmaTf32", "fp32": "MmaFp32"}
PASSES = ("forward", "backward")
FLAGS = ["-w", "-fno-strict-aliasing", "-ffp-contract=off", "-DRNNFAST_SIMT"]
INCLUDES = ["tests/simt/ptx/declared", "csrc", "tests", "tests/cpp", "tests/simt/cpp"]
EXECUTOR = "executor"
# What ThreadSanitizer watches has its own objects and programs, of this ending.
THREAD = ".thread"
SANITIZE = "-fsanitize=thread -g1"
SECONDS = 300  # a fault may keep a kernel from ending


@dataclass(frozen=True)
class Kernels:
    """Some of the shipped kernels: those of a cell and way of the product, in both passes.

    Attributes:
        team: "" for those of one block, "grid", "cluster", or "teams": both.
        shapes: "first", the smallest, or "every"; of teams every is of both.
        arch: the architecture that nvcc compiles for.
    """

    cell: str
    math: str
    team: str = ""
    shapes: str = "first"
    arch: int = 90

    @property
    def name(self) -> str:
        return f"{self.cell}_{self.math}_{self.team or 'solo'}_{self.shapes}_{self.arch}"

    def source(self) -> str:
        """CUDA: explicit instances of the first shapes, or launches, that have them all."""
        folder = "team" if self.team else "solo"
        text = f'#include "cuda/{folder}/dispatch.h"\nnamespace rnnfast::cuda {{\n'
        for name in PASSES:
            one = self._every if self.shapes == "every" else self._first
            text += one(name, name.capitalize(), CELLS[self.cell], MATHS[self.math])
        return text + "}  // namespace rnnfast::cuda\n"

    def _every(self, name: str, title: str, cell: str, math: str) -> str:
        of = f"Pass::k{title}, {cell}, {math}"
        if self.team:
            return (
                f"void every_{name}(const TeamLaunch<{title}Args>& run) {{\n"
                f"  detail::ask_cell<{of}>(TeamAsk::kLaunch, run);\n}}\n"
            )
        return (
            f"void every_{name}(int shape, const {title}Args& args, Stream stream) {{\n"
            f"  detail::run_cell<{of}>(shape, args, stream);\n}}\n"
        )

    def _first(self, name: str, title: str, cell: str, math: str) -> str:
        if self.team:
            kernel, team = f"team_{name}", f"{self.team.capitalize()}Team"
            shape = f"team_shapes(Pass::k{title}, kIdOf<{cell}>).at[0]"
            numbers, args = f"{shape}.tiles, {shape}.held_slabs", f"WithTeam<{title}Args>"
        else:
            kernel, team = f"sequence_{name}", "SoloTeam"
            shape = f"shapes(Pass::k{title}, kIdOf<{cell}>, {math}::kMath).at[0]"
            numbers, args = f"{shape}.groups, {shape}.held_slabs", f"{title}Args"
        return (
            f"template __global__ void {kernel}<{cell}, {math}, {team},\n    {numbers}>"
            f"(RNNFAST_ARGS {args});\n"
        )


def _all_kernels() -> list[Kernels]:
    kernels = []
    for cell in CELLS:
        for math in MATHS:
            kernels += [Kernels(cell, math, arch=arch) for arch in (80, 90)]
            kernels.append(Kernels(cell, math, shapes="every"))
            if math != "fp32":  # no team computes in strict fp32
                kernels += [Kernels(cell, math, team) for team in ("grid", "cluster")]
                kernels.append(Kernels(cell, math, "teams", "every"))
    return kernels


EVERY = _all_kernels()


def why_not() -> str | None:
    """Why nothing can be built here, or None."""
    search = find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        return f"needs nvcc: {search.why_not()}"
    compiler, why = host.find_compiler(os.environ)
    if compiler is None:
        return why
    return None if host.find_ninja(os.environ) else "needs ninja: pip install ninja"


def program(name: str) -> Path:
    """Builds the program of Kernels.name, of a Fault's name, or ``snippets``. Raises RuntimeError
    with the tool's message where that fails."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once
        for kernels in EVERY:
            _write(FOLDER / f"{kernels.name}.cu", kernels.source())
        _write(FOLDER / "snippets.ptx", handwritten.ptx())
        _write(FOLDER / "build.ninja", _ninja_file())
        command = [str(host.find_ninja(os.environ)), "-C", str(FOLDER)]
        command += ["-j", os.environ.get("MAX_JOBS", "2"), name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the build of {name} failed:\n{done.stdout[-3000:]}")
    return FOLDER / name


def explain(text: str) -> str:
    """A program's output, and of every place in a PTX that it names the line itself."""
    for file, line in re.findall(r"at (\S+\.ptx):(\d+)", text):
        lines = (FOLDER / file).read_text().splitlines()
        text += f"\n{file}:{line}: {lines[int(line) - 1].strip()}"
    return text


def run(name: str, cases: list[str]) -> tuple[int, str]:
    """Exit status and output of a program, built where it is not there."""
    made = program(name)
    done = subprocess.run([made, *cases], capture_output=True, text=True, timeout=SECONDS)
    return done.returncode, explain(done.stdout + done.stderr)


@functools.cache
def _tools() -> tuple[str, str]:
    """Compiler and nvcc, as command lines."""
    compiler, why = host.find_compiler(os.environ)
    search = find_nvcc(torch.version.cuda)
    if compiler is None or search.nvcc is None:
        raise RuntimeError(why or search.why_not())
    return shlex.join(compiler.command), str(search.nvcc.path)


def _ninja_file() -> str:
    compiler, nvcc = _tools()
    flags = shlex.join([*FLAGS, *(f"-I{ROOT / p}" for p in INCLUDES)])
    python = f"cd {shlex.quote(str(ROOT))} && {shlex.quote(sys.executable)} -m tests.simt.ptx"
    rules = {
        "cxx": f"{compiler} -std=c++17 $optimised $sanitize {flags} -MMD -MF $out.d -c $in -o $out",
        "nvcc": f"{nvcc} -ptx -std=c++17 -O3 -arch=sm_$arch -I{ROOT / 'csrc'} $in -o $out "
        "-MMD -MF $out.d",
        "translate": f"{python}.translate {FOLDER}/$in {FOLDER}/$out $part",
        "fault": f"{python}.faults $of {FOLDER}/$in {FOLDER}/$out",
        "join": f"{compiler} -r -nostdlib $in -o $out",
        "link": f"{compiler} $sanitize $in -pthread -o $out",
    }
    lines = ["ninja_required_version = 1.5", "optimised = -O1", "sanitize = "]
    for rule, command in rules.items():
        lines += [f"rule {rule}", f"  command = {command}", f"  description = {rule} $out"]
        if rule in ("cxx", "nvcc"):
            lines += ["  depfile = $out.d", "  deps = gcc"]
        if rule in ("translate", "fault"):
            lines.append("  restat = 1")
    for way in ("", THREAD):
        lines += _host_objects(way)
    for kernels in EVERY:
        lines += _of_kernels(kernels)
    for fault in FAULTS:
        lines += _of_fault(fault)
    lines += _translated("snippets", "snippets.ptx")
    lines.append(f"build snippets: link snippets.ptx.o snippets.o {EXECUTOR}.o")
    return "\n".join([*lines, ""])


def _host_objects(way: str) -> list[str]:
    sources = [*sorted((ROOT / "tests/simt").glob("*.cpp")), ROOT / "csrc/scan/problem.cpp"]
    sources.append(HERE / "runtime.cpp")
    names = [f"{EXECUTOR}/{source.stem}" for source in sources]
    lines = []
    for name, source in zip(names, sources, strict=True):
        lines += _object(name, source, way)
    lines.append(f"build {EXECUTOR}{way}.o: join {' '.join(f'{name}{way}.o' for name in names)}")
    for name in ("driver", "launchers", "snippets"):
        lines += [*_object(name, HERE / f"{name}.cpp", way), "  optimised = -O0"]
    return lines


def _object(name: str, source: Path | str, way: str) -> list[str]:
    lines = [f"build {name}{way}.o: cxx {source}"]
    return [*lines, f"  sanitize = {SANITIZE}"] if way else lines


def _translated(name: str, source: str, part: str = "", ways: tuple[str, ...] = ("",)) -> list[str]:
    """The C++ and the objects ``name`` of a PTX."""
    own = " ".join(str(HERE / f"{p}.py") for p in ("emit", "ir", "parse", "rules", "translate"))
    lines = [f"build {name}.ptx.cpp: translate {source} | {own}", f"  part = {part}"]
    for way in ways:
        lines += [*_object(f"{name}.ptx", f"{name}.ptx.cpp", way), "  optimised = -Og"]
    return lines


def _linked(name: str, translated: list[str], ways: tuple[str, ...] = ("",)) -> list[str]:
    """The program ``name``."""
    lines = []
    for way in ways:
        objects = [*translated, "driver", "launchers", EXECUTOR]
        lines.append(f"build {name}{way}: link {' '.join(f'{o}{way}.o' for o in objects)}")
        if way:
            lines.append(f"  sanitize = {SANITIZE}")
    return lines


def _of_kernels(kernels: Kernels) -> list[str]:
    name, objects = kernels.name, []
    lines = [f"build {name}.ptx: nvcc {name}.cu", f"  arch = {kernels.arch}"]
    for of_pass in PASSES:
        lines += _translated(f"{name}.{of_pass}", f"{name}.ptx", f"_{of_pass}I", ("", THREAD))
        objects.append(f"{name}.{of_pass}.ptx")
    return [*lines, *_linked(name, objects, ("", THREAD))]


def _of_fault(fault: Fault) -> list[str]:
    """The kernel of one pass with a fault, the other's as it is."""
    base = Kernels(fault.cell, fault.math, fault.team).name
    other = next(p for p in PASSES if p != fault.of_pass)
    ways = (THREAD,) if fault.race else ("",)
    return [
        f"build {fault.name}.ptx: fault {base}.ptx | {HERE / 'faults.py'}",
        f"  of = {fault.name}",
        *_translated(fault.name, f"{fault.name}.ptx", f"_{fault.of_pass}I", ways),
        *_linked(fault.name, [f"{fault.name}.ptx", f"{base}.{other}.ptx"], ways),
    ]


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
