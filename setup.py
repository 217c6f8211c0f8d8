"""The build of the extension; the metadata is in pyproject.toml, how it works in docs/build.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent


def load_build_helpers():
    """Import rnnfast/_build by its path: importing rnnfast itself would need torch."""
    folder = ROOT / "rnnfast" / "_build"
    spec = importlib.util.spec_from_file_location(
        "rnnfast_build", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rnnfast_build"] = module
    spec.loader.exec_module(module)
    return importlib.import_module("rnnfast_build.command")


command = load_build_helpers()
OLDEST = "cp310"  # rnnfast/_build/ninja_file.py: OLDEST_PYTHON
setup(
    # Without an extension to build, setuptools makes a pure-Python wheel.
    ext_modules=[Extension("rnnfast._C", sources=[])] if command.extension_wanted(ROOT) else [],
    cmdclass=command.commands(ROOT),
    options={"bdist_wheel": {"py_limited_api": OLDEST}} if command.is_portable() else {},
)
