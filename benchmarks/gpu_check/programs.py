"""`python -m benchmarks.gpu_check.programs` compiles the program that measures rates (rates.cu).

By nvcc, for the architecture that is named or all that it knows of ours; or for the executor.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from rnnfast._build import host
from rnnfast._build.nvcc import find_nvcc

from .rates import EXECUTOR, PROGRAM, ROOT, STAMP, stamp

SOURCE = Path(__file__).with_name("rates.cu")
ARCHS = (80, 86, 89, 90, 100, 120)


class BuildError(RuntimeError):
    """It can't be compiled here; the text says why."""


def build(arch: str | None = None, path: Path = PROGRAM) -> Path:
    """Compiles for this architecture ("9.0"), or every one that this nvcc knows of ARCHS. Raises
    BuildError."""
    search = find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        raise BuildError(f"no nvcc: {search.why_not()}")
    nvcc = str(search.nvcc.path)
    if arch is None:
        known = _run([nvcc, "--list-gpu-code"]).split()
        archs = [str(number) for number in ARCHS if f"sm_{number}" in known]
    else:
        archs = [arch.replace(".", "")]
    command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "--threads", "2"]
    for number in archs:
        command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path == PROGRAM:
        STAMP.unlink(missing_ok=True)
    _run([*command, str(SOURCE), "-o", str(path)])
    if path == PROGRAM:
        STAMP.write_text(stamp())
    return path


def build_for_executor() -> Path:
    """The same program on the CPU (docs/simt.md). Raises BuildError."""
    compiler, why = host.find_compiler(os.environ)
    ninja = host.find_ninja(os.environ)
    if compiler is None or ninja is None:
        raise BuildError(why or "ninja runs the build and is not installed: pip install ninja")
    folder = EXECUTOR.parent
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-DRNNFAST_SIMT"]
    flags += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}"]
    words = shlex.join([*compiler.command, *flags])
    lines = ["rule compile", f"  command = {words} -MMD -MF $out.d $language -c $in -o $out"]
    lines += ["  depfile = $out.d", "  deps = gcc"]
    objects = []
    for source in [SOURCE, *sorted((ROOT / "tests" / "simt").glob("*.cpp"))]:
        objects.append(f"{source.stem}.o")
        lines += [f"build {objects[-1]}: compile {source}"]
        lines += ["  language = -x c++"] if source.suffix == ".cu" else []
    lines += ["rule link", f"  command = {shlex.join(compiler.command)} $in -pthread -o $out"]
    lines += [f"build rates: link {' '.join(objects)}", ""]
    (folder / "build.ninja").write_text("\n".join(lines))
    _run([ninja, "-C", str(folder), "-j", os.environ.get("MAX_JOBS", "2")])
    return EXECUTOR


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip()[-2000:]
        raise BuildError(f"{Path(command[0]).name} failed: {words}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.programs")
    parser.add_argument("--arch", help="such as 9.0; default: all that nvcc knows of ours")
    parser.add_argument("--executor", action="store_true", help="for the CPU (docs/simt.md)")
    asked = parser.parse_args(arguments)
    try:
        print(build_for_executor() if asked.executor else build(asked.arch))
    except BuildError as error:
        print(f"rates: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
