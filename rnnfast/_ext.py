"""Loading what is compiled, or saying why it can't be: `rnnfast._cpu`, the kernels for the CPU, for
every torch and Python; `rnnfast._C`, those for GPUs, for the ones that it was built with."""

from __future__ import annotations

import functools
import importlib
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ._build import record

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
    problem = mismatch(build_record(), str(torch.__version__))
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


def mismatch(info: dict[str, Any] | None, torch_version: str) -> str | None:
    """Why the `_C` that `info` describes can't be loaded beside this torch; None where it can.

    The record is asked before the file is opened: loaded beside another torch it would fail with a
    linker error at best, and crash at worst.
    """
    if (problem := not_built(info)) is not None:
        return problem
    assert info is not None
    if info.get("portable"):
        return f"a wheel has no rnnfast._C, the kernels for GPUs; to build it, {FROM_SDIST}"
    soabi = sysconfig.get_config_var("SOABI")
    if info["python"] != soabi:
        return f"the extension was built for {info['python']}, and this is {soabi}; {REBUILD}"
    if info["torch"] != torch_version:
        return (
            f"the extension was built against torch {info['torch']}, and this is torch "
            f"{torch_version}; {REBUILD}"
        )
    return None
