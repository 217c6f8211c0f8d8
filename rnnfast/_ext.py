"""Loading what is compiled, or saying why it can't be: `rnnfast._cpu`, the kernels for the CPU and
the plan of those for GPUs; `librnnfast_cuda.so`, the ops of these, `rnnfast::cuda_…`; both for
every torch and Python; `rnnfast._C`, for tests and tools, for one Python."""

from __future__ import annotations

import functools
import importlib
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ._build import record

CUDA = "librnnfast_cuda.so"
REBUILD = (
    "in rnnfast's source folder run `make setup`, or "
    "`pip install --no-build-isolation --no-deps --force-reinstall .`"
)
FROM_SDIST = (
    "`pip install --no-build-isolation --no-deps --force-reinstall --no-binary rnnfast rnnfast`"
)
_PACKAGE = Path(__file__).resolve().parent


def cpu() -> ModuleType | None:
    """The module `rnnfast._cpu`, or None; `why_no_cpu()` then has the reason."""
    return _cpu()[0]


def why_no_cpu() -> str | None:
    """Why `cpu()` gives None and which command mends it; None where it gives the module."""
    return _cpu()[1]


@functools.cache
def why_no_cuda() -> str | None:
    """Why this torch has no ops of the CUDA kernels, and which command mends it; None where it has:
    they are loaded by the first call."""
    problem = no_cuda(build_record(), torch.version.cuda)
    if problem is not None:
        return problem
    try:
        torch.ops.load_library(_PACKAGE / CUDA)
    except OSError as error:
        return f"{CUDA} does not load: {error}; to build it again, {REBUILD}"
    return None


def load() -> ModuleType | None:
    """The module `rnnfast._C`, or None; `why_missing()` then has the reason."""
    return _load()[0]


def why_missing() -> str | None:
    """Why `load()` gives None and which command mends it; None where it gives the module."""
    return _load()[1]


def build_record() -> dict[str, Any] | None:
    """What the build wrote down: versions, flags, architectures; None where there was none."""
    return record.read(_PACKAGE)


@functools.cache
def _cpu() -> tuple[ModuleType | None, str | None]:
    problem = not_built(build_record())
    return (None, problem) if problem is not None else _imported("rnnfast._cpu")


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    problem = mismatch(build_record())
    return (None, problem) if problem is not None else _imported("rnnfast._C")


def _imported(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(name), None
    except (ImportError, RuntimeError, AttributeError, ValueError) as error:
        return None, f"{name} does not load: {error}; to build it again, {REBUILD}"


def not_built(info: dict[str, Any] | None) -> str | None:
    """Why the build that `info` describes left nothing compiled; None where it did."""
    if info is None:
        return f"the extension is not built; {REBUILD}"
    if not info["built"]:
        return f"the extension was not built, for: {info['reason']}; once that is mended, {REBUILD}"
    return None


def no_cuda(info: dict[str, Any] | None, torch_cuda: str | None) -> str | None:
    """Why the build that `info` describes has no CUDA kernels for a torch of this CUDA ("13.0";
    None: without); None where it has."""
    if (problem := not_built(info)) is not None:
        return problem
    assert info is not None
    if info["cuda"] is None:
        how = f"; to build it with CUDA, {FROM_SDIST}" if info["portable"] else ""
        return f"rnnfast was built without CUDA ({info['cuda_note']}){how}"
    major = info["cuda"].split(".")[0]
    if torch_cuda is None or torch_cuda.split(".")[0] != major:
        has = "without CUDA" if torch_cuda is None else f"for CUDA {torch_cuda}"
        return (
            f"rnnfast's CUDA kernels were built for CUDA {major}, and this torch {has}; {REBUILD}"
        )
    return None


def mismatch(info: dict[str, Any] | None) -> str | None:
    """Why the `_C` that `info` describes can't be loaded by this Python; None where it can.

    The record is asked before the file is opened: loaded by another Python it would fail with a
    linker error at best, and crash at worst.
    """
    if (problem := not_built(info)) is not None:
        return problem
    assert info is not None
    if info.get("portable"):
        return f"a wheel has no rnnfast._C, which is for tests and tools; to build it, {FROM_SDIST}"
    soabi = sysconfig.get_config_var("SOABI")
    if info["python"] != soabi:
        return f"the extension was built for {info['python']}, and this is {soabi}; {REBUILD}"
    return None
