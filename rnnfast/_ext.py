"""Loading the compiled part, `rnnfast._C`, or saying why there is none."""

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
_PACKAGE = Path(__file__).resolve().parent


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
def _load() -> tuple[ModuleType | None, str | None]:
    problem = mismatch(build_record(), str(torch.__version__))
    if problem is not None:
        return None, problem
    try:
        return importlib.import_module("rnnfast._C"), None
    except ImportError as error:
        return None, f"rnnfast._C does not load: {error}; to build it again, {REBUILD}"


def mismatch(info: dict[str, Any] | None, torch_version: str) -> str | None:
    """Why the extension that `info` describes can't be loaded beside this torch; None where it can.

    The record is asked before the file is opened: loaded beside another torch it would fail with a
    linker error at best, and crash at worst.
    """
    if info is None:
        return f"the extension is not built; {REBUILD}"
    if not info["built"]:
        return f"the extension was not built, for: {info['reason']}; once that is mended, {REBUILD}"
    soabi = sysconfig.get_config_var("SOABI")
    if info["python"] != soabi:
        return f"the extension was built for {info['python']}, and this is {soabi}; {REBUILD}"
    if info["torch"] != torch_version:
        return (
            f"the extension was built against torch {info['torch']}, and this is torch "
            f"{torch_version}; {REBUILD}"
        )
    return None
