"""Builds tests/cpp/cells_module.cpp (the C++ cells and their reference scan) where it changed."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from rnnfast._build import ninja_file, recipe

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (ROOT / "tests/cpp/cells_module.cpp", ROOT / "csrc/scan/problem.cpp")
READ = ("tests/cpp/reference.h", "csrc/cells/*.h", "csrc/scan/*.h")


def load() -> ModuleType:
    """The module; skips the test where nothing can be built.

    Raises RuntimeError with the compiler's message where that fails."""
    found = recipe.make_recipe({**os.environ, "RNNFAST_CUDA": "0"})
    if isinstance(found, str):
        pytest.skip(found)
    command = _command(found)
    folder = ROOT / "build" / "cells" / _digest(command)
    library = folder / f"cells_module{recipe.extension_suffix()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of one test run
        if not library.is_file():
            made = library.with_suffix(".new")
            done = subprocess.run([*command, "-o", made], capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{SOURCES[0].name} does not compile:\n{done.stderr}")
            made.replace(library)
    spec = importlib.util.spec_from_file_location("cells_module", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _command(found: recipe.Recipe) -> list[str]:
    torch = found.torch.root
    include = (torch / "include", torch / "include/torch/csrc/api/include", found.python_include)
    libraries = ninja_file.TorchPaths((), (str(torch / "lib"),))
    return [
        *found.compiler.command,
        f"-std={found.torch.cxx_standard}",
        *("-O1", "-fPIC", "-fvisibility=hidden", "-shared", "-w"),
        *(f"-I{ROOT / folder}" for folder in ("csrc", "tests/cpp")),
        *(f"-isystem{path}" for path in include),
        *map(str, SOURCES),
        *(f"-L{path}" for path in libraries.library),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]


def _digest(command: list[str]) -> str:
    """Of all that the module is made of."""
    made = hashlib.sha256("\n".join(command).encode())
    for path in (*SOURCES, *sorted(p for pattern in READ for p in ROOT.glob(pattern))):
        made.update(path.read_bytes())
    return made.hexdigest()[:20]
