"""Files loaded in a process that has torch and can't import rnnfast."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

_CHILD = """
import sys, warnings
sys.modules["rnnfast"] = None  # as if it were not installed: an import of it raises
import torch
from torch.utils._pytree import tree_leaves
warnings.simplefilter("ignore")
torch.set_num_threads(1)
kind, library, folder, names = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
if library:
    torch.ops.load_library(library)
found = {}
for name in names:
    try:
        inputs = torch.load(f"{folder}/{name}.inputs")
        with torch.no_grad():
            if kind == "jit":
                module = torch.jit.load(f"{folder}/{name}.pt")
            else:
                module = torch.export.load(f"{folder}/{name}.pt2").module()
            found[name] = [tree_leaves(module(*args)) for args in inputs]
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
torch.save(found, f"{folder}/found")
"""


def asked_for(request: pytest.FixtureRequest, cases: dict[str, Any]) -> dict[str, Any]:
    """Of ``cases`` those that this run's tests are parametrized with, as ``name``."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    names = {spec.params.get("name") for spec in specs if spec is not None}
    return {name: case for name, case in cases.items() if name in names}


def run_elsewhere(
    kind: str, folder: Path, inputs: dict[str, list[Any]], library: Path | str = "", **env: str
) -> dict[str, Any]:
    """What the files of ``folder`` return there, by name, for each tuple of arguments: lists of
    tensors, or the error's text. ``kind``: "jit" or "export"; ``library`` is loaded before."""
    for name, given in inputs.items():
        torch.save(given, folder / f"{name}.inputs")
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", _CHILD, kind, str(library), str(folder), *inputs]
    subprocess.run(command, check=True, env=inherited | env, cwd=folder)
    return torch.load(folder / "found")
