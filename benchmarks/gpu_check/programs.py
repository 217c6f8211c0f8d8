"""The program that measures rates (rates.cu): compiled by nvcc, or for the executor."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import torch

from rnnfast._build import host
from rnnfast._build.nvcc import find_nvcc

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("rates.cu")
FOLDER = ROOT / "build" / "gpu-check"
ARCHS = (80, 86, 89, 90, 100, 120)


class BuildError(RuntimeError):
    """It can't be compiled here; the text says why."""


def find(prebuilt: bool) -> Path:
    """The program for a device: compiled anew unless it is newer than its sources.

    Raises BuildError where it can't be, or is `prebuilt` and not there.
    """
    path = FOLDER / "rates"
    if prebuilt:
        if path.is_file():
            return path
        raise BuildError(
            f"{path} is not there; where there is an nvcc: "
            "python -m benchmarks.gpu_check --build-rates"
        )
    sources = [*SOURCE.parent.glob("rates*"), *(ROOT / "csrc" / "cuda").rglob("*.h")]
    if path.is_file() and all(path.stat().st_mtime > s.stat().st_mtime for s in sources):
        return path
    return build(path)


def build(path: Path = FOLDER / "rates") -> Path:
    """Compiles for every architecture that this nvcc knows of ARCHS. Raises BuildError."""
    search = find_nvcc(torch.version.cuda)
    if search.nvcc is None:
        raise BuildError(f"no nvcc: {search.why_not()}")
    known = _run([str(search.nvcc.path), "--list-gpu-code"])
    archs = [arch for arch in ARCHS if f"sm_{arch}" in known.split()]
    command = [str(search.nvcc.path), "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "--threads", "2"]
    for arch in archs:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    _run([*command, str(SOURCE), "-o", str(path)])
    return path


def build_for_executor() -> Path:
    """The same program on the CPU (docs/simt.md). Raises BuildError."""
    compiler, why = host.find_compiler(os.environ)
    ninja = host.find_ninja(os.environ)
    if compiler is None or ninja is None:
        raise BuildError(why or "ninja runs the build and is not installed: pip install ninja")
    folder = FOLDER / "executor"
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
    return folder / "rates"


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip()[-2000:]
        raise BuildError(f"{Path(command[0]).name} failed: {words}")
    return done.stdout
