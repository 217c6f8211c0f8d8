"""The setuptools commands: build_ext by way of ninja, and build_py that also packs csrc."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import subprocess
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from setuptools import Command
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from . import ninja_file, record
from .recipe import WITHOUT_IT, BuildError, Recipe, extension_suffix, make_recipe

LIBRARY = "librnnfast.so"  # the op for processes without Python
CUDA = "librnnfast_cuda.so"
CPU = "_cpu.abi3.so"
Commands = dict[str, type[Command]]


def extension_wanted(root: Path) -> bool:
    """False where no extension can be built here, so that the wheel is a pure-Python one."""
    try:
        return not isinstance(make_recipe(), str)
    except BuildError:
        return True  # build_ext then raises it, with the message


def is_portable() -> bool:
    """Whether RNNFAST_PORTABLE asks for what any Python can load."""
    return os.environ.get("RNNFAST_PORTABLE") == "1"


def commands(root: Path) -> Commands:
    """setup()'s `cmdclass` for the project in `root`."""

    class BuildExt(build_ext):
        def run(self) -> None:
            in_tree = self.inplace or self.editable_mode
            build_extension(root, (root if in_tree else Path(self.build_lib)) / "rnnfast")

    class BuildPy(build_py):
        def run(self) -> None:
            if not self.editable_mode:
                _drop_earlier_build(Path(self.build_lib), root / "build")
            super().run()
            package = (root if self.editable_mode else Path(self.build_lib)) / "rnnfast"
            if not self.distribution.has_ext_modules():
                build_extension(root, package)
            if not self.editable_mode:
                _pack_sources(root / "csrc", package / "_csrc")

    return {"build_ext": BuildExt, "build_py": BuildPy}


def build_extension(root: Path, package: Path) -> None:
    """Build _cpu, librnnfast.so, librnnfast_cuda.so and _C, those of them that are to be, and put
    them and their record into `package`; where that can't be, say why."""
    try:
        recipe = make_recipe()
    except BuildError as error:
        raise SystemExit(f"rnnfast build: {error}") from None
    package.mkdir(parents=True, exist_ok=True)
    targets = {
        "_C.so": package / f"_C{extension_suffix()}",
        "_cpu.so": package / CPU,
        LIBRARY: package / LIBRARY,
        CUDA: package / CUDA,
    }
    if not isinstance(recipe, str) and recipe.portable:
        targets.pop("_C.so").unlink(missing_ok=True)
    if not isinstance(recipe, str) and recipe.nvcc is None:
        targets.pop(CUDA).unlink(missing_ok=True)
    if isinstance(recipe, str):
        for target in targets.values():
            target.unlink(missing_ok=True)
        record.write(package, {"built": False, "reason": recipe})
        print(f"rnnfast build: extension skipped: {recipe}; {WITHOUT_IT}", flush=True)
        return
    print(f"rnnfast build: {recipe.summary()}", flush=True)
    folder = root / "build" / f"ext{extension_suffix()}{'-debug' if recipe.debug else ''}"
    ninja_file.write_ninja(recipe, _torch_paths(), root / "csrc", folder)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if subprocess.run([recipe.ninja, "-C", str(folder), "-j", jobs]).returncode != 0:
        raise SystemExit("rnnfast build: the compiler failed; its message is above")
    for name, target in targets.items():
        _install(folder / name, target)
    record.write(package, _facts(recipe, root / "csrc"))


def _facts(recipe: Recipe, csrc: Path) -> dict[str, Any]:
    return {
        "built": True,
        "portable": recipe.portable,
        "torch": recipe.torch.version,
        "python": sysconfig.get_config_var("SOABI"),
        "cuda": recipe.nvcc.version if recipe.nvcc else None,
        "cuda_note": recipe.cuda_note,
        "archs": list(recipe.archs),
        "compiler": recipe.compiler.version,
        "flags": " ".join(ninja_file.cxx_flags(recipe)),
        "unknown_flags": " ".join(ninja_file.unknown_flags(recipe, csrc)),
        "cuda_flags": " ".join(ninja_file.cuda_flags(recipe)) if recipe.nvcc else None,
        "debug": recipe.debug,
        "sources": record.digest(csrc),
    }


def _torch_paths() -> ninja_file.TorchPaths:
    # Importing it looks for a CUDA toolkit and warns; which nvcc is used is decided in recipe.py.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # of no use to a build
        from torch.utils import cpp_extension

    return ninja_file.TorchPaths(
        tuple(cpp_extension.include_paths()), tuple(cpp_extension.library_paths())
    )


def _install(built: Path, target: Path) -> None:
    """Copy and rename, so that a process that has the old file loaded keeps it."""
    if target.is_file() and filecmp.cmp(built, target, shallow=False):
        return
    fresh = target.with_suffix(".so.new")
    shutil.copy2(built, fresh)
    os.replace(fresh, target)


def _drop_earlier_build(build_lib: Path, build: Path) -> None:
    """Without this, files that were since removed from the package would get into the wheel."""
    if build.resolve() in build_lib.resolve().parents:
        shutil.rmtree(build_lib, ignore_errors=True)


def _pack_sources(csrc: Path, target: Path) -> None:
    """Ship the C++ sources in the wheel: cells of one's own are compiled with its headers."""
    shutil.copytree(csrc, target, dirs_exist_ok=True)
