"""The C++ compiler, the Python headers and ninja: what a build needs besides torch."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]  # CXX may hold a launcher and flags: ("ccache", "g++")
    version: str  # first line of --version

    def __str__(self) -> str:
        return self.version


def find_compiler(
    env: Mapping[str, str] | None = None, names: Sequence[str] = ("c++", "g++", "clang++")
) -> tuple[Compiler | None, str]:
    """The compiler that CXX names, else the first of ``names`` on PATH; or None and why."""
    env = os.environ if env is None else env
    named = shlex.split(env.get("CXX", ""))
    for command in [named] if named else [[name] for name in names]:
        if shutil.which(command[0], path=env.get("PATH", "")) is None:
            continue
        version = _first_line([*command, "--version"], env)
        if version:
            return Compiler(tuple(command), version), ""
    none = f"no {', '.join(names[:-1])} or {names[-1]} on PATH"
    tried = f"CXX={env['CXX']} does not run" if named else none
    return None, f"no C++ compiler ({tried})"


@functools.cache
def knows(compiler: Compiler, flag: str) -> bool:
    """Whether it compiles an empty source with ``flag``."""
    command = [*compiler.command, "-Werror", flag, "-x", "c++", "-c", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def find_ninja(env: Mapping[str, str] | None = None) -> str | None:
    """The ninja beside the running Python (a venv that isn't activated), else the one on PATH."""
    env = os.environ if env is None else env
    beside = Path(sys.executable).parent / "ninja"
    return str(beside) if beside.is_file() else shutil.which("ninja", path=env.get("PATH", ""))


def gpu_visible(env: Mapping[str, str] | None = None, dev: Path = Path("/dev")) -> bool:
    """Whether the driver shows an NVIDIA GPU: as a device file, else to nvidia-smi (WSL)."""
    env = os.environ if env is None else env
    if any(dev.glob("nvidia[0-9]*")):
        return True
    tool = shutil.which("nvidia-smi", path=env.get("PATH", ""))
    return tool is not None and _first_line([tool, "-L"], env) is not None


def python_header_dir() -> Path | None:
    """The folder of Python.h, or None (Debian's python3 without python3-dev)."""
    folder = Path(sysconfig.get_path("include"))
    return folder if (folder / "Python.h").is_file() else None


def _first_line(command: list[str], env: Mapping[str, str]) -> str | None:
    try:
        out = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, env=dict(env)
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.splitlines()[0] if out.stdout else None
