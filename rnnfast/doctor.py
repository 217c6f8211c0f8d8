"""`python -m rnnfast doctor`: versions, what was built, and which backends are usable."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from . import _ext, library
from ._build import host, nvcc
from ._build.ninja_file import OLDEST_PYTHON, OLDEST_TORCH
from ._version import __version__

Row = tuple[str, str]


def report() -> str:
    """The report as text: one fact a line, sections with a title."""
    sections: list[tuple[str, Iterable[Row]]] = [
        ("Versions", _versions()),
        ("Extension", _extension()),
        ("To build with", _tools()),
        ("GPU", _gpus()),
        ("OpenMP", [("runtimes loaded", ", ".join(openmp_runtimes()) or "none")]),
        ("Backends", _backends()),
        ("Tuning", _tuning()),
        ("Cells of one's own", _cells()),
        ("Environment", _environment()),
    ]
    return "\n\n".join(_section(title, list(rows)) for title, rows in sections)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; the exit status, 0. `argv` may hold `--help` and nothing else."""
    argparse.ArgumentParser(
        prog="python -m rnnfast doctor",
        description="Prints versions, what was built, and which backends are usable.",
    ).parse_args(argv)
    print(report())
    return 0


def openmp_runtimes(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """The OpenMP runtimes loaded into this process, by path (Linux; elsewhere nothing is known)."""
    if not maps.is_file():
        return []
    paths = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/" in line}
    return sorted(p for p in paths if re.match(r"lib(gomp|iomp|omp)\d?\b", Path(p).name))


def _versions() -> list[Row]:
    return [
        ("rnnfast", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
        ("triton", _triton_version()),
    ]


def _triton_version() -> str:
    for name in ("triton", "pytorch-triton"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _extension() -> list[Row]:
    parts = [
        ("rnnfast._cpu", _ext.why_no_cpu()),
        (_ext.CUDA, _ext.why_no_cuda()),
        ("rnnfast._C", _ext.why_missing()),
    ]
    rows = [(name, f"not usable: {why}" if why else "loaded") for name, why in parts]
    rows += _instructions()
    info = _ext.build_record()
    if info is None or not info["built"]:
        return rows
    return [
        *rows,
        ("built against", f"torch {info['torch']} for {info['python']}"),
        ("_cpu fits", f"torch from {_dotted(OLDEST_TORCH)}, Python from {_dotted(OLDEST_PYTHON)}"),
        ("compiler", info["compiler"]),
        ("flags", info["flags"] + ("  (a debug build)" if info["debug"] else "")),
        *([("flags it lacks", unknown)] if (unknown := info.get("unknown_flags")) else []),
        ("CUDA", info["cuda_note"]),
    ]


def _instructions() -> list[Row]:
    from .backends import cpu

    module = _ext.cpu()
    if module is None:
        return []
    try:
        return [("instruction set", f"{module.cpu_isa()}{cpu.of_bfloat16()}")]
    except RuntimeError as error:  # RNNFAST_CPU_CAPABILITY
        return [("instruction set", str(error))]


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _tools() -> list[Row]:
    compiler, why_not = host.find_compiler()
    search = nvcc.find_nvcc(torch.version.cuda)
    return [
        ("C++ compiler", str(compiler) if compiler else why_not),
        ("nvcc", str(search.nvcc) if search.nvcc else f"none that fits: {search.why_not()}"),
    ]


def _gpus() -> list[Row]:
    if not torch.cuda.is_available():
        why = "torch sees no CUDA device" if torch.version.cuda else "torch is built without CUDA"
        return [("device", f"none: {why}")]
    from .backends import qualified

    rows = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        rows.append(
            (f"cuda:{index}", f"{facts.name}, sm_{facts.major}{facts.minor}, {memory:.0f} GiB")
        )
        rows.append((f"cuda:{index}", qualified.summary(index)))
    return rows


def _backends() -> list[Row]:
    from .backends import registry  # here, so that the rest of the report needs no backend

    return [
        (name, "usable" if usable else f"no: {reason}")
        for name, usable, reason in registry.status()
    ]


def _tuning() -> list[Row]:
    from .backends import measured

    own = measured.local()
    known = f"{len(own.points)} sizes and {len(own.calls)} calls measured on this machine"
    if not own.points and not own.calls:
        known = "by the tables that ship; `python -m rnnfast tune` measures this machine"
    return [("auto goes", known)]


def _cells() -> list[Row]:
    why_not = library.why_not()
    if why_not is not None:
        return [("compiled", f"not here: {why_not}")]
    return [("compiled", f"{len(library.listed())} so far, in {library.folder()}")]


def _environment() -> list[Row]:
    names = ["CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CXX", "MAX_JOBS", "OMP_NUM_THREADS"]
    names += sorted(n for n in os.environ if n.startswith("RNNFAST_"))
    return [(n, os.environ[n]) for n in names if n in os.environ] or [("variables", "none set")]


def _section(title: str, rows: list[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])
